#include "launch/job/job_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "core/units.hpp"
#include "launch/expert_slots.hpp"
#include "launch/tensor_choice.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

void describe(const Options& options, const Model& model, const Plan& plan, const WireChoice& wire_choice,
              JobReport& report) {
  const EngineLayout& engine = plan.topology.engine;
  const std::string slots = slots_text(engine);
  report.model = model.title;
  report.layout = fmt::format(
      "{}{}, {} × pp {} × {}, experts {}{}{}", counted(plan.topology.trainers, "trainer"),
      plan.topology.trainer_layout ? " (" + plan.topology.trainer_layout->to_string() + ")" : "",
      counted(engine.replicas, "replica"), engine.pp, engine.cut_text(), engine.experts_text(),
      slots.empty() ? "" : ", " + slots,
      engine.quantizer ? fmt::format(", {} at the {}", quantizer_name(*engine.quantizer), options.quantize_at)
                       : "");
  report.limits =
      fmt::format("fan-out {}, transport {}, buckets of {} × {}", options.fan_out,
                  wire_name(wire_choice.wire), format_bytes(plan.limits.bucket_bytes), plan.limits.buffers);
  const Catalog& whole = model.family->whole_catalog();
  report.tensors = static_cast<std::int64_t>(whole.size());
  report.model_bytes = whole.bytes();
  report.sent_bytes = model.family->catalog().bytes();
  if (const Choice* const choice = model.family->choice(); choice != nullptr) {
    report.partial = {choice->tensors, choice->bytes, choice->staying_tensors, choice->staying_bytes,
                      choice_text(*choice)};
  }
  if (!model.sources.empty() && !model.sources.front().binding.left_out.empty()) {
    const std::vector<LeftOut>& left_out = model.sources.front().binding.left_out;
    const auto bytes =
        std::accumulate(left_out.begin(), left_out.end(), std::int64_t{0},
                        [](std::int64_t sum, const LeftOut& tensor) { return sum + tensor.bytes; });
    report.left_out = {std::ssize(left_out), bytes, left_out_text(left_out)};
  }
  report.wire_bytes = plan.wire_bytes();
  report.buckets = static_cast<std::int64_t>(plan.buckets.size());
  report.routes = plan.routes();
  report.staging_bytes_per_rank = plan.staging_bytes_per_rank();
  report.expert_epoch = engine.experts.epoch;
  report.expert_placement = engine.experts.fingerprint();
  report.plan_hash = fmt::format("{:016x}", plan.hash);
}

void describe_ways(Control& control, const Session& session, JobReport& report) {
  report.ways = session.start_seconds().gpu.ways;
  std::array<std::uint64_t, 2> bytes{0, 0};
  const ParameterWindow* const window = session.memory().window();
  for (std::size_t p = 0; p < session.rank_plan().parameters.size(); ++p) {
    const std::span<const std::byte> parameter = session.parameter(p);
    const bool direct = window == nullptr || !window->tensor_at(parameter.data());
    bytes[direct ? 0 : 1] += static_cast<std::uint64_t>(session.rank_plan().parameters[p].written_bytes());
  }
  control.agreement.sum(std::span<std::uint64_t>(bytes));
  report.direct_bytes = static_cast<std::int64_t>(bytes[0]);
  report.loader_bytes = static_cast<std::int64_t>(bytes[1]);
}

void describe_start(Control& control, const Session& session, const WireChoice& wire_choice, double seconds,
                    JobReport& report) {
  const StartSeconds& start = session.start_seconds();
  std::vector<std::pair<std::string, double>> parts{
      {"MPI", MpiEnvironment::start_seconds()}, {"plan", start.plan}, {"memory", start.memory}};
  if (wire_choice.wire == Wire::kNccl) {
    parts.insert(parts.end(), {{"device", wire_choice.seconds},
                               {"communicators", start.gpu.communicators},
                               {"first transfers", start.gpu.connections},
                               {"programs", start.gpu.programs}});
  }
  std::vector<double> slowest{seconds};
  for (const auto& [name, part] : parts) slowest.push_back(part);
  control.agreement.maximum(std::span<double>(slowest));
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i].second = slowest[i + 1];
  report.startup_seconds = slowest[0];
  report.plan_seconds = parts[1].second;
  report.start_parts = std::move(parts);
}

BoundRecord stage_bound(const UpdateSeconds& s, std::int64_t model_bytes) {
  const double arrived = s.unpack + s.verify;
  const double slowest = std::max({s.read, s.transport, arrived, 1e-9});
  BoundRecord bound{"reading", "source", 0, 0};  // where nothing takes any time
  if (arrived == slowest) {
    bound = {"unpacking and verifying", s.unpack > s.verify ? "unpack" : "verify", 0, 0};
  }
  if (s.transport == slowest) bound = {"the wire", "wire", 0, 0};
  if (s.read == slowest) bound = {"reading", "source", 0, 0};
  bound.gb_s = static_cast<double>(model_bytes) / slowest / 1e9;
  bound.achieved = slowest / std::max(s.update, 1e-9);
  return bound;
}

}  // namespace weightcast
