#include "measure/mpi_wire.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <limits>

#include "core/units.hpp"

namespace weightcast {

MpiWire::MpiWire(Control& control, const Topology& topology, std::span<std::byte> source, std::int64_t bytes,
                 std::span<std::byte> target, std::int64_t ring_bytes)
    : control_(control) {
  constexpr std::int64_t kMostBytes = std::int64_t{2} << 30;
  constexpr std::int64_t kAnything = std::numeric_limits<std::int64_t>::max();
  const bool root = control.rank() == 0;
  const std::span<std::byte> ring =
      target.first(std::min(target.size(), static_cast<std::size_t>(ring_bytes)));
  buffer_ = root ? source : ring;
  copies_ = target.subspan(ring.size());
  bytes_ = least(root ? std::min(kMostBytes, bytes) : kMostBytes);
  // What a rank has room for bounds the steps, and the copies of them.
  const bool receives = !root && !target.empty();
  const std::int64_t most_step =
      std::min(bytes_, least(root || receives ? static_cast<std::int64_t>(buffer_.size()) : kAnything));
  const std::int64_t most_copy = least(receives ? static_cast<std::int64_t>(copies_.size()) : kAnything);
  for (const std::int64_t step : {1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20}) {
    if (step <= most_step) steps_.push_back(step);
  }
  if (steps_.empty()) steps_.push_back(most_step);
  for (const std::int64_t step : steps_) {
    broadcasts_.push_back({fmt::format("MPI_Ibcast of {}", format_bytes(step)), {}, bytes_});
    if (step > most_copy) continue;
    copied_.push_back({fmt::format("MPI_Ibcast of {} and one memcpy", format_bytes(step)), {}, bytes_});
  }
  std::vector<int> ranks{0};
  for (int rank = 1; rank < control.size(); ++rank) {
    if (topology.inference_rank(rank)) ranks.push_back(rank);
  }
  member_ = std::find(ranks.begin(), ranks.end(), control.rank()) != ranks.end();
  constexpr int kTag = 7;
  if (member_) {
    group_ = Communicator::of_ranks(control.comm(), ranks, kTag);
  }
}

void MpiWire::measure() {
  for (std::size_t s = 0; s < steps_.size(); ++s) {
    broadcasts_[s].seconds.push_back(broadcast(steps_[s], false));
    if (s < copied_.size()) copied_[s].seconds.push_back(broadcast(steps_[s], true));
  }
}

std::int64_t MpiWire::least(std::int64_t value) {
  std::array<std::int64_t, 1> negative{-value};
  control_.agreement.maximum(std::span<std::int64_t>(negative));
  return -negative[0];
}

double MpiWire::broadcast(std::int64_t step, bool copy) {
  using Clock = std::chrono::steady_clock;
  control_.agreement.together([] {});
  const auto start = Clock::now();
  const bool root = control_.rank() == 0;
  const auto room = static_cast<std::int64_t>(buffer_.size());
  for (std::int64_t at = 0; member_ && at < bytes_; at += step) {
    const std::int64_t count = std::min(step, bytes_ - at);
    // A region that is smaller than all of it is walked round.
    std::byte* data = buffer_.data() + at % std::max<std::int64_t>(1, room - step + 1);
    MPI_Request request = MPI_REQUEST_NULL;
    WEIGHTCAST_MPI(
        MPI_Ibcast(data, mpi_count(static_cast<std::size_t>(count)), MPI_BYTE, 0, group_.get(), &request));
    control_.agreement.wait(request);
    if (copy && !root) std::memcpy(copies_.data(), data, static_cast<std::size_t>(count));
  }
  control_.agreement.together([] {});
  std::array<double, 1> slowest{std::chrono::duration<double>(Clock::now() - start).count()};
  control_.agreement.maximum(std::span<double>(slowest));
  return slowest[0];
}

}  // namespace weightcast
