#include "session/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "core/units.hpp"
#include "plan/quantizing.hpp"
#include "plan/routes.hpp"
#include "session/host_pipeline.hpp"
#include "session/memory_need.hpp"
#include "session/rounds.hpp"
#include "session/verification.hpp"
#include "transport/transport.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Session::Session(Control& control, const Family& family, const Topology& topology, const Limits& limits,
                 const SessionOptions& options)
    : control_(control), family_(family), options_(options), memory_(options.parameters) {
  if (!memory_) {
    memory_ = own_parameter_memory(options.wire == Wire::kNccl ? &make_gpu_memory : &make_host_memory);
  }
  const auto begin = [&](std::string what) {
    if (options.activity != nullptr) options.activity->begin(std::move(what));
  };
  begin("building the plan");
  plan_together(topology, limits);
  const auto trainer = topology.trainer(control.rank());
  const std::int64_t source_bytes = options.source_bytes != nullptr && trainer
                                        ? options.source_bytes(plan_, family.catalog(), *trainer)
                                        : 0;
  const auto start = Clock::now();
  const MemoryNeed need{memory_->bytes_to_allocate(rank_plan_), plan_.staging_bytes_per_rank(), source_bytes};
  options.wire == Wire::kNccl ? require_gpu_memory(control, need, options.also)
                              : require_node_memory(control, need, options.also);
  begin(fmt::format("allocating {} of parameters", format_bytes(memory_->bytes_to_allocate(rank_plan_))));
  control_.agreement.together([&] {
    memory_->open(rank_plan_);
    expected_.resize(plan_.digests());
    written_.resize(rank_plan_.checks.size());
  });
  std::array<std::int64_t, 1> windows{memory_->window() != nullptr ? 1 : 0};
  control_.agreement.maximum(std::span<std::int64_t>(windows));
  windows_ = windows.front() != 0;
  start_.memory = seconds_since(start);
  begin(fmt::format("opening the wire and {} of staging", format_bytes(plan_.staging_bytes_per_rank())));
  open_routes();
}

void Session::plan_together(const Topology& topology, const Limits& limits) {
  const auto start = Clock::now();
  control_.agreement.together([&] {
    plan_ = options_.plan ? options_.plan() : make_plan(family_, topology, limits);
    rank_plan_ = make_rank_plan(plan_, family_, control_.rank());
  });
  start_.plan = seconds_since(start);
  control_.agreement.require_same(
      plan_.hash,
      InternalError(
          "plan: its hash differs between ranks; run the same build of the program on all of them"));
}

void Session::open_routes() {
  Routes routes = routes_of(plan_);
  std::vector<std::byte*> parameters;
  for (std::size_t p = 0; p < rank_plan_.parameters.size(); ++p) parameters.push_back(parameter(p).data());
  if (options_.wire == Wire::kNccl) {
    start_.gpu = {};
    pipeline_ = make_gpu_pipeline(plan_, rank_plan_, std::move(routes), std::move(parameters),
                                  {options_.direct, family_, memory_->allocations()}, control_,
                                  options_.blocks, options_.rounds, start_.gpu);
    return;
  }
  auto transport =
      make_mpi_transport(control_.comm(), routes.routes, static_cast<std::size_t>(plan_.limits.buffers));
  control_.agreement.together([&] {
    std::unique_ptr<Handover> handover;
    if (ParameterWindow* const window = memory_->window(); window != nullptr) {
      handover = std::make_unique<Handover>(plan_, family_.catalog(), rank_plan_, parameters, *window);
    }
    pipeline_ = std::make_unique<HostPipeline>(
        plan_, rank_plan_, std::move(routes.of_bucket), std::move(parameters), std::move(transport), control_,
        Rounds(rank_plan_, options_.rounds), std::move(handover), windows_);
  });
}

void Session::take_staging() {
  if (!pipeline_) open_routes();
}

void Session::read_piece(std::size_t p, std::int64_t offset,
                         const std::function<void(std::span<const std::byte>)>& visit) const {
  const std::span<std::byte> live = parameter(p);
  const std::int64_t bytes = std::min(kPieceBytes, static_cast<std::int64_t>(live.size()) - offset);
  if (memory_->on_host()) {
    return visit(live.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(bytes)));
  }
  // Each thread keeps its own.
  thread_local std::vector<std::byte> piece(kPieceBytes);
  const std::span<std::byte> part = std::span(piece).first(static_cast<std::size_t>(bytes));
  memory_->read(p, offset, part);
  visit(part);
}

void Session::read_parameter(
    std::size_t p, const std::function<void(std::int64_t, std::span<const std::byte>)>& visit) const {
  for (std::int64_t at = 0; at < rank_plan_.parameters.at(p).bytes(); at += kPieceBytes) {
    read_piece(p, at, [&](std::span<const std::byte> bytes) { visit(at, bytes); });
  }
}

void Session::poison() {
  constexpr std::byte kPoison{0xa5};
  memory_->fill(kPoison);
  pipeline_->poison(kPoison);
}

UpdateSeconds Session::update(Source* source, std::int64_t version, bool verify, Progress& progress) {
  control_.deadline.begin_phase("update to version", version, options_.while_written);
  std::int64_t bytes = 0;
  for (const Bucket& bucket : plan_.buckets) bytes += bucket.bytes;
  progress.begin(version, bytes);
  has_written_ = false;
  take_staging();

  // Every rank begins at the same moment, so that the figures mean the same.
  const auto prepare = [&] {
    pipeline_->prepare(source);
    memory_->begin(version);
  };
  // By reference: what it captures is more than a std::function holds without an allocation.
  control_.agreement.together(std::ref(prepare));
  const auto start = Clock::now();
  agree_on_scales(source);
  std::fill(expected_.begin(), expected_.end(), 0);
  std::exception_ptr failure;
  try {
    const std::span<std::uint64_t> none;
    failure = pipeline_->run(source, scales_, verify ? std::span(expected_) : none,
                             verify ? std::span(written_) : none, progress);
  } catch (const std::exception& error) {
    control_.last_words.abort_all(error_of(error));
  }
  progress.end();
  // Each segment has one root; all others have added zero.
  if (verify) control_.agreement.sum(expected_);
  // First the cause: what a rank that has failed sends is not what the others should get.
  try {
    const auto conclude = [&] {
      if (failure) std::rethrow_exception(failure);
      if (source != nullptr) source->require_unchanged();
      memory_->require_whole();
    };
    control_.agreement.together(std::ref(conclude));
  } catch (const AgreedFailure&) {
    mend_wire();
    throw;
  }
  const auto look = [&] {
    if (verify) verify_written();
  };
  control_.agreement.together(std::ref(look));
  control_.agreement.together([&] { memory_->commit(version); });
  const double seconds = seconds_since(start);
  const StageSeconds stages = pipeline_->stage_seconds();
  const double read = source != nullptr && source->reads_files() ? stages.pack : 0;
  std::array<double, 6> slowest{read,          stages.pack - read, stages.transport,
                                stages.unpack, stages.verify,      seconds};
  control_.agreement.maximum(std::span<double>(slowest));
  return {slowest[0], slowest[1], slowest[2], slowest[3], slowest[4], 0, slowest[5]};
}

void Session::mend_wire() {
  std::array<std::int64_t, 1> broken{pipeline_->wire_is_broken() ? 1 : 0};
  control_.agreement.maximum(std::span<std::int64_t>(broken));
  if (broken.front() == 0) return;
  try {
    pipeline_->reopen_wire();
  } catch (const std::exception& error) {
    control_.last_words.abort_all(error_of(error));
  }
}

void Session::agree_on_scales(Source* source) {
  if (!plan_.scopes.empty()) {
    std::vector<float> largest(plan_.scopes.size(), 0);
    control_.agreement.together([&] {
      if (source == nullptr) return;
      source->find_largest(plan_.topology.trainer(control_.rank()).value(), largest,
                           [&] { control_.deadline.poll(); });
    });
    std::vector<double> of_all(largest.begin(), largest.end());
    control_.agreement.maximum(std::span<double>(of_all));
    std::transform(of_all.begin(), of_all.end(), largest.begin(),
                   [](double value) { return static_cast<float>(value); });
    scales_ = scales_of_scopes(plan_, largest);
  }
  if (source != nullptr) source->use_scales(scales_);
  has_written_ = true;
  // Parameters hold scales of scopes alone.
  if (plan_.scopes.empty()) return;
  control_.agreement.together([&] {
    for_each_scalar([&](std::size_t p, std::int64_t offset, std::span<const float> values) {
      memory_->write(p, offset, std::as_bytes(values));
    });
  });
}

void Session::for_each_scalar(
    const std::function<void(std::size_t, std::int64_t, std::span<const float>)>& visit) const {
  constexpr std::int64_t kBytes = sizeof(float);
  for (std::size_t p = 0; p < rank_plan_.parameters.size(); ++p) {
    const Parameter& parameter = rank_plan_.parameters[p];
    const std::vector<Scalar>& scalars = parameter.scalars;
    if (scalars.empty()) continue;
    const std::vector<float> values = scalar_values(plan_, parameter, scales_);
    for (std::size_t first = 0, end = 0; first < scalars.size(); first = end) {
      for (end = first + 1; end < scalars.size(); ++end) {
        if (scalars[end].offset != scalars[end - 1].offset + kBytes) break;
      }
      const std::int64_t offset = scalars[first].offset;
      visit(p, offset, std::span(values).subspan(static_cast<std::size_t>(offset / kBytes), end - first));
    }
  }
}

void Session::verify_written() const {
  require_written(plan_, family_.catalog(), rank_plan_, written_, expected_);
  for_each_scalar([&](std::size_t p, std::int64_t offset, std::span<const float> values) {
    std::vector<float> held(values.size());
    memory_->read(p, offset, std::as_writable_bytes(std::span(held)));
    if (std::ranges::equal(std::as_bytes(std::span(held)), std::as_bytes(values))) return;
    throw VerifyError(
        fmt::format("verify: parameter {} does not hold the scales that were agreed on; run the update again",
                    rank_plan_.parameters[p].name));
  });
  require_zero_padding(rank_plan_, pipeline_->first_dirty_padding());
}

}  // namespace weightcast
