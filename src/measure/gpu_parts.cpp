#include "measure/gpu_parts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <optional>

#include "core/units.hpp"

namespace weightcast {

GpuParts::GpuParts(Control& control, const Session& session, Source* source, std::int64_t sent_bytes,
                   Parts parts)
    : control_(control), session_(session) {
  transfers_.bytes = sent_bytes;
  control.agreement.together([&] {
    gauges_ = make_gpu_gauges(session.pipeline(), session.rank_plan(),
                              *session.memory().allocations().front(), source, parts == kWire);
  });
  constexpr std::int64_t kAnything = std::numeric_limits<std::int64_t>::max();
  const Topology& topology = session.plan().topology;
  members_.push_back(0);
  for (int rank = 1; rank < control.size(); ++rank) {
    if (topology.inference_rank(rank)) members_.push_back(rank);
  }
  const bool root = control.rank() == 0;
  const bool member = std::find(members_.begin(), members_.end(), control.rank()) != members_.end();
  const std::int64_t room = parts == kWire ? session.plan().wire_bytes()
                                           : extreme(member ? gauges_->wire_room(root) : kAnything, false);
  constexpr std::int64_t kGiB = std::int64_t{1} << 30;
  if (members_.size() > 1 && room > 0) {
    gauges_->open_wire(members_);
    for (const std::int64_t step : {session.plan().limits.bucket_bytes, kGiB}) {
      const std::int64_t fitting = std::min(step, room);
      if (!steps_.empty() && fitting <= steps_.back()) continue;
      steps_.push_back(fitting);
      wires_.push_back({fmt::format("NCCL broadcast of {}", format_bytes(fitting)), {}, room});
    }
  }
  if (parts == kWire) return;
  const Plan& plan = session.plan();
  std::int64_t held = 0;    // values that the rank packs
  std::int64_t packed = 0;  // buckets that it makes of them
  std::int64_t arrived = 0;
  for (const RankBucket& rank_plan : session.rank_plan().buckets) {
    const Bucket& bucket = plan.buckets[rank_plan.bucket];
    if (rank_plan.destination) arrived += bucket.bytes;
    if (!rank_plan.root || gauges_->source_bytes() == 0) continue;
    packed += bucket.bytes;
    for (const Segment& segment : std::span(plan.segments).subspan(bucket.first_segment, bucket.segments)) {
      held += segment.box.area() * plan.wire[segment.tensor].element_bytes;
    }
  }
  // What is read and what is written, each once. Compared are the bytes of the rank that has most.
  const std::int64_t copied = 2 * extreme(gauges_->copy_bytes(), true);
  const std::int64_t packing = extreme(held + packed, true);
  const std::int64_t unpacking = extreme(arrived + session.rank_plan().parameter_bytes, true);
  const std::int64_t digesting = extreme(held + session.rank_plan().parameter_bytes, true);
  device_ = {{"device copy", {}, copied},
             {"pack alone", {}, packing},
             {"pack alone, whole device", {}, packing},
             {"unpack alone", {}, unpacking},
             {"unpack alone, whole device", {}, unpacking},
             {"digests alone", {}, digesting},
             {"digests alone, whole device", {}, digesting}};
}

void GpuParts::measure() {
  for (std::size_t i = 0; i < steps_.size(); ++i) wires_[i].seconds.push_back(broadcast(steps_[i]));
  if (all_over_nccl()) transfers_.seconds.push_back(together([&] { gauges_->transfer(); }));
  if (device_.empty()) return;
  using enum GpuGauges::Grid;
  note(device_[0], gauges_->copy_seconds());
  note(device_[1], gauges_->pack_seconds(kUpdate));
  note(device_[2], gauges_->pack_seconds(kWholeDevice));
  note(device_[3], gauges_->unpack_seconds(kUpdate));
  note(device_[4], gauges_->unpack_seconds(kWholeDevice));
  note(device_[5], gauges_->digest_seconds(kUpdate));
  note(device_[6], gauges_->digest_seconds(kWholeDevice));
}

bool GpuParts::all_over_nccl() const {
  const std::optional<DirectWays>& ways = session_.start_seconds().gpu.ways;
  return session_.plan().wire_bytes() > 0 && (!ways || ways->direct_routes == 0);
}

double GpuParts::broadcast(std::int64_t step) {
  const bool member = std::find(members_.begin(), members_.end(), control_.rank()) != members_.end();
  return together([&] {
    if (member) {
      gauges_->broadcast(members_, control_.rank() == members_.front(), wires_.front().bytes, step);
    }
  });
}

template <typename Work>
double GpuParts::together(Work work) {
  using Clock = std::chrono::steady_clock;
  control_.agreement.together([] {});
  const auto start = Clock::now();
  work();
  control_.agreement.together([] {});
  std::array<double, 1> slowest{std::chrono::duration<double>(Clock::now() - start).count()};
  control_.agreement.maximum(std::span<double>(slowest));
  return slowest[0];
}

void GpuParts::note(Measured& measured, double seconds) {
  std::array<double, 1> slowest{seconds};
  control_.agreement.maximum(std::span<double>(slowest));
  if (slowest[0] > 0) measured.seconds.push_back(slowest[0]);
}

std::int64_t GpuParts::extreme(std::int64_t value, bool greatest) {
  std::array<std::int64_t, 1> most{greatest ? value : -value};
  control_.agreement.maximum(std::span<std::int64_t>(most));
  return greatest ? most[0] : -most[0];
}

std::int64_t GpuParts::memory_beyond_parameters() {
  return extreme(gauges_->device_bytes() - session_.memory().bytes_to_allocate(session_.rank_plan()) -
                     gauges_->source_bytes(),
                 true);
}

}  // namespace weightcast
