#include "launch/job/update_job.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/files/tensor_copy.hpp"
#include "launch/job/file_threads.hpp"
#include "launch/job/run_job.hpp"
#include "launch/landing.hpp"
#include "launch/layouts.hpp"
#include "launch/version.hpp"
#include "report/log.hpp"
#include "source/file_source.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What the report says of a model and its plan.
void describe(const Options& options, const Model& model, const Plan& plan, const WireChoice& wire_choice,
              JobReport& report) {
  const EngineLayout& engine = plan.topology.engine;
  report.model = model.title;
  report.layout = fmt::format(
      "{}{}, {} × pp {} × tp {}, ep {}, experts {}{}", counted(plan.topology.trainers, "trainer"),
      plan.topology.trainer_layout ? " (" + plan.topology.trainer_layout->to_string() + ")" : "",
      counted(engine.replicas, "replica"), engine.pp, engine.tp, engine.ep, engine.experts_text(),
      engine.quantizer ? fmt::format(", {} at the {}", quantizer_name(*engine.quantizer), options.quantize_at)
                       : "");
  report.limits =
      fmt::format("fan-out {}, transport {}, buckets of {} × {}", options.fan_out,
                  wire_name(wire_choice.wire), format_bytes(plan.limits.bucket_bytes), plan.limits.buffers);
  report.tensors = static_cast<std::int64_t>(model.family->catalog().size());
  report.model_bytes = model.family->catalog().bytes();
  report.wire_bytes = plan.wire_bytes();
  report.buckets = static_cast<std::int64_t>(plan.buckets.size());
  report.routes = plan.routes();
  report.staging_bytes_per_rank = plan.staging_bytes_per_rank();
  report.plan_hash = fmt::format("{:016x}", plan.hash);
}

/// Which bytes of the engines' parameters take which way. Collective.
void describe_ways(Control& control, const Session& session, JobReport& report) {
  std::array<std::uint64_t, 2> bytes{0, 0};
  const ParameterWindow* const window = session.memory().window();
  for (std::size_t p = 0; p < session.rank_plan().parameters.size(); ++p) {
    const std::span<const std::byte> parameter = session.parameter(p);
    const bool direct = window == nullptr || !window->tensor_at(parameter.data());
    bytes[direct ? 0 : 1] += parameter.size();
  }
  control.agreement.sum(std::span<std::uint64_t>(bytes));
  report.direct_bytes = static_cast<std::int64_t>(bytes[0]);
  report.loader_bytes = static_cast<std::int64_t>(bytes[1]);
}

/// What the start was made of; each part is the slowest rank's.
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

/// Throws UsageError for a folder in whose name something like `{step}` is left: all versions would take the
/// same name.
void require_known_braces(const std::string& sink, std::string_view folder) {
  for (std::size_t at = folder.find('{'); at != std::string_view::npos; at = folder.find('{', at + 1)) {
    const std::string_view braces = folder.substr(at, folder.find('}', at) - at + 1);
    if (!braces.ends_with('}') || braces == "{version}") continue;
    throw UsageError(fmt::format(
        "--sink {}: nothing takes the place of {}; write {{version}} for the weight version, or a "
        "name without braces",
        excerpt(sink), excerpt(braces)));
  }
}

}  // namespace

std::optional<ShardPlace> shard_place(const std::string& sink) {
  if (sink == "none" || live_directory(sink)) return std::nullopt;
  for (const FileFormat format : {FileFormat::kHdf5, FileFormat::kSafetensors}) {
    const std::string prefix = fmt::format("{}:", file_format_name(format));
    if (sink.starts_with(prefix) && sink.size() > prefix.size()) {
      require_known_braces(sink, std::string_view(sink).substr(prefix.size()));
      return ShardPlace{format, sink.substr(prefix.size())};
    }
  }
  throw UsageError(
      fmt::format("--sink {}: write none, hdf5:DIR, safetensors:DIR or live:DIR", excerpt(sink)));
}

LimitRecord stage_limit(const UpdateSeconds& s, std::int64_t model_bytes) {
  const double arrived = s.unpack + s.verify;
  const double slowest = std::max({s.read, s.transport, arrived, 1e-9});
  LimitRecord limit{"reading", "source", 0, 0};  // where nothing takes any time
  if (arrived == slowest) {
    limit = {"unpacking and verifying", s.unpack > s.verify ? "unpack" : "verify", 0, 0};
  }
  if (s.transport == slowest) limit = {"the wire", "wire", 0, 0};
  if (s.read == slowest) limit = {"reading", "source", 0, 0};
  limit.gb_s = static_cast<double>(model_bytes) / slowest / 1e9;
  limit.achieved = slowest / std::max(s.update, 1e-9);
  return limit;
}

UpdateJob::UpdateJob(Control& control, const Options& options)
    : control_(control),
      options_(options),
      progress_(options.progress, control.rank() == 0),
      activity_(options.progress, control.rank() == 0) {
  report_.versions = version_line();
  report_.command = options.command;
}

void UpdateJob::open(SessionOptions session, const std::function<void()>& check) {
  const auto start = Clock::now();
  const Activity::Scope scope(activity_);
  activity_.begin("reading what the options name");
  control_.agreement.together([&] {
    shard_place_ = weightcast::shard_place(options_.sink);
    require_live_options(options_);
  });
  const std::shared_ptr<const LandingMap> landing = load_landing(control_, options_);
  control_.agreement.together([&] {
    topology_ = topology_of(options_, landing.get());
    require_world_size(topology_, control_.size());
  });
  const bool is_live = live_directory(options_.sink) ||
                       (!options_.sources.empty() && live_directory(options_.sources.front()));
  if (is_live) live_.emplace(control_, options_, topology_);
  wire_choice_ = live_ ? live_->choose_wire() : choose_wire(control_, options_.transport);
  activity_.begin("reading metadata of the source");
  model_ = load_model(control_, options_, landing, topology_, live());
  control_.agreement.together(check);
  session.wire = wire_choice_.wire;
  session.activity = &activity_;
  if (live_) {
    live_->open();
    control_.agreement.together(
        [&] { session.parameters = live_->parameters(*model_.family, topology_.engine); });
    if (live_directory(options_.sink)) {
      session.while_written = LiveUpdate::kWhileWritten;
    }
  }
  session_.emplace(control_, *model_.family, topology_, limits_of(options_), session);
  const int threads = file_threads(control_, trainer().has_value());
  readers_.emplace(trainer() && options_.read_threads > 0 ? static_cast<int>(options_.read_threads)
                                                          : threads);
  if (shard_place_) {
    writers_.emplace(file_threads(control_, topology_.inference_rank(control_.rank()).has_value()));
    sink_.emplace(control_, *session_, *writers_, *shard_place_);
  }
  startup_seconds_ = seconds_since(start);
}

void UpdateJob::begin_trace(OutputFile* file) {
  if (!options_.trace.empty()) trace_.emplace(control_, *session_, file);
}

void UpdateJob::write_trace() {
  if (trace_) trace_->write(report_);
}

void UpdateJob::print_head(const std::string& columns) {
  describe(options_, model_, session_->plan(), wire_choice_, report_);
  describe_ways(control_, *session_, report_);
  describe_start(control_, *session_, wire_choice_, startup_seconds_, report_);
  const std::vector<std::string> hosts = control_.agreement.gather(control_.host());
  const std::vector<std::string> devices = control_.agreement.gather(wire_choice_.device);
  if (control_.rank() != 0) return;
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    const auto rank = static_cast<int>(i);
    report_.ranks.push_back({rank, role_of(topology_, rank), hosts[i], devices[i]});
  }
  print_report(header_text(report_) + columns);
}

void UpdateJob::update(const Update& update) {
  UpdateRecord record = update_unreported(update);
  record.limit = stage_limit(record.seconds, report_.model_bytes);
  report_.updates.push_back(record);
  if (control_.rank() != 0) return;
  report_in_place(control_, [&] { print_report(update_text(record)); });
}

UpdateRecord UpdateJob::update_unreported(const Update& update) {
  control_.deadline.begin_phase("update to version", update.version);
  UpdateRecord record;
  record.weight_version = update.version;
  record.source = update.label;
  record.verified = update.verify;
  try {
    if (sink_) sink_->begin(update.version, options_.command);
    Source* const source = update.source();
    if (live_) live_->update().pause(update.version, options_.allow_older);
    record.seconds = session_->update(source, update.version, update.verify, progress_);
  } catch (const AgreedFailure& failure) {
    if (live_) live_->update().fail(failure.what(), session_->has_written());
    throw;
  }
  if (live_) live_->update().commit(update.version);
  if (trace_) trace_->add(update.version, record.seconds.read > 0);
  if (sink_) {
    const auto start = Clock::now();
    const Activity::Scope scope(activity_);
    activity_.begin("writing shards");
    sink_->write(update.version);
    record.seconds.write = seconds_since(start);
  }
  record.rate_gb_s = static_cast<double>(report_.model_bytes) / record.seconds.update / 1e9;
  return record;
}

std::int64_t UpdateJob::begin_live(std::int64_t otherwise, const Checkpoint& from, bool& there,
                                   std::optional<std::int64_t> wanted) {
  there = false;
  if (!live_) return otherwise;
  control_.deadline.begin_phase("waiting for trainers and engines");
  const Activity::Scope scope(activity_);
  activity_.begin("waiting for trainers and engines");
  const std::int64_t version = live_->update().begin(otherwise, origin_of(from));
  try {
    control_.agreement.together([&] {
      if (!wanted || version == *wanted) return;
      throw UsageError(
          fmt::format("--weight-version {}: the trainers offer version {}; ask for that one, or for none",
                      *wanted, version));
    });
  } catch (const AgreedFailure& failure) {
    live_->update().fail(failure.what(), false);
    throw;
  }
  there = live_->update().is_there(version);
  if (there) live_->update().leave();
  return version;
}

BoundCheckpoint UpdateJob::load_source(const std::string& path) {
  return weightcast::load_source(control_, options_, path, model_, topology_);
}

std::unique_ptr<Source> UpdateJob::source_of(const BoundCheckpoint& from) {
  if (!live_ || !live_->has_trainers()) return file_source(from);
  return live_->source(session_->plan(), model_.family->catalog(), from);
}

std::unique_ptr<Source> UpdateJob::file_source(const BoundCheckpoint& from) {
  if (!trainer()) return nullptr;
  require_equal_copies(options_, *model_.family, from, *readers_, {*trainer(), topology_.trainers},
                       [&] { control_.deadline.poll(); });
  return std::make_unique<FileSource>(session_->plan(), model_.family->catalog(), from.checkpoint,
                                      from.binding.held, *readers_);
}

}  // namespace weightcast
