#include "launch/job.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/layouts.hpp"
#include "launch/version.hpp"
#include "report/trace.hpp"

namespace weightcast {

namespace {

/// What the start was made of; each part is the slowest rank's.
void describe_start(Control& control, const Session& session, const Placement& placement, double seconds,
                    JobReport& report) {
  const StartSeconds& start = session.start_seconds();
  std::vector<std::pair<std::string, double>> parts{
      {"MPI", MpiEnvironment::start_seconds()}, {"plan", start.plan}, {"memory", start.memory}};
  if (placement.wire == Wire::kNccl) {
    parts.insert(parts.end(), {{"device", placement.seconds},
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

/// Throws UsageError when the trace would replace the report. Both may go to one pipe or terminal.
void require_other_file(const std::string& json, const std::string& trace) {
  std::error_code ignored;
  if (!std::filesystem::equivalent(json, trace, ignored) || !std::filesystem::is_regular_file(json, ignored))
    return;
  throw UsageError(fmt::format("--trace {}: is the file of --json, too; name another", trace));
}

}  // namespace

JobReport describe_job(Control& control, const Options& options, const Model& model, const Session& session,
                       const Placement& placement, double startup_seconds) {
  const Plan& plan = session.plan();
  const EngineLayout& engine = plan.topology.engine;
  JobReport report;
  report.command = options.command;
  report.versions = version_line();
  report.model = fmt::format("{} ({})", model.config->architecture(), model.config->origin());
  report.layout = fmt::format(
      "{} trainers{}, {} replicas × pp {} × tp {}, ep {}, experts {}{}, fan-out {}, transport {}, buckets of "
      "{} × {}",
      plan.topology.trainers,
      plan.topology.trainer_layout ? " (" + plan.topology.trainer_layout->to_string() + ")" : "",
      engine.replicas, engine.pp, engine.tp, engine.ep, engine.moe_layout,
      engine.quantizer ? fmt::format(", {} at the {}", quantizer_name(*engine.quantizer), options.quantize_at)
                       : "",
      options.fan_out, wire_name(placement.wire), format_bytes(plan.limits.bucket_bytes),
      plan.limits.buffers);
  report.tensors = static_cast<std::int64_t>(model.family->catalog().size());
  report.model_bytes = model.family->catalog().bytes();
  report.wire_bytes = plan.wire_bytes();
  report.buckets = static_cast<std::int64_t>(plan.buckets.size());
  report.routes = plan.routes();
  report.slot_bytes = plan.slot_bytes;
  report.staging_bytes_per_rank = plan.staging_bytes_per_rank();
  report.plan_hash = fmt::format("{:016x}", plan.hash);
  describe_start(control, session, placement, startup_seconds, report);
  const std::vector<std::string> hosts = control.agreement.gather(control.host());
  const std::vector<std::string> devices = control.agreement.gather(placement.device);
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
    const auto number = static_cast<std::int64_t>(rank);
    report.ranks.push_back(
        {static_cast<int>(rank), role_of(plan.topology, number), hosts[rank], devices[rank]});
  }
  return report;
}

void run_job(Control& control, const Options& options, const std::function<void(OutputFile* trace)>& body,
             const EndReport& report) {
  std::optional<OutputFile> json;
  std::optional<OutputFile> trace;
  const auto fail = [&](ExitCode code, const std::string& line) { write_failure(json, report, code, line); };
  control.last_words.on_abort(fail);
  try {
    // The first agreement is the one in which a rank with a wrong command line takes part. That rank's error
    // goes into the report, too.
    control.agreement.together([&] {
      if (control.rank() != 0) return;
      json = begin_report(options);
      if (json) require_other_file(options.json, options.trace);
      trace = begin_output("trace", options.trace, trace_json({}));
    });
    control.agreement.require_same(
        options.hash, UsageError("the ranks were given different options; on several nodes write them on "
                                 "the command line, or export WEIGHTCAST_* with mpirun -x"));
    body(trace ? &*trace : nullptr);
  } catch (const AgreedFailure& failure) {
    fail(failure.code(), failure.what());
    control.last_words.on_abort({});
    throw;
  } catch (const std::exception& error) {
    control.last_words.abort_all(error_of(error));
  }
  // From here on all is done, and a signal must not make it look otherwise: no report before all ranks have
  // come here, since one that a signal still finds in an earlier wait ends the job.
  const Deadline::DeferSignals defer(control.deadline);
  control.agreement.together([] {});
  control.last_words.on_abort({});
  control.agreement.together([&] {
    if (json) report_in_place(control, [&] { json->write(report(ExitCode::kDone, "")); });
  });
}

void report_in_place(const Control& control, const std::function<void()>& report) {
  try {
    report();
  } catch (const Error& error) {
    if (control.deadline.in_place().empty()) throw;
    throw Error(error.code(), fmt::format("{}; {}", error.what(), control.deadline.in_place()));
  }
}

}  // namespace weightcast
