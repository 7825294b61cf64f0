#include "launch/job/update_job.hpp"

#include <fmt/format.h>

#include <chrono>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "launch/expert_slots.hpp"
#include "launch/files/checkpoint_origin.hpp"
#include "launch/job/file_threads.hpp"
#include "launch/job/job_report.hpp"
#include "launch/job/run_job.hpp"
#include "launch/landing.hpp"
#include "launch/layout_text.hpp"
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

/// Throws UsageError where it is asked for in any case, and this job cannot.
Direct direct_of(const Options& options, Wire wire, const LiveEnds* live) {
  if (options.direct == "never") return Direct::kNever;
  const bool on_gpu = options.command == "bench" ? options.sources.empty() : false;
  const bool has_weights = on_gpu || (live != nullptr && live->has_trainers());
  const bool possible = wire == Wire::kNccl && has_weights;
  if (options.direct == "always" && !possible) {
    throw UsageError(
        fmt::format("--direct always: {}; leave it out",
                    wire == Wire::kNccl
                        ? "weights come from files, which are read into staging, and not from memory on GPUs"
                        : "over MPI weights go through the host's memory"));
  }
  if (!possible) return Direct::kNever;
  return options.direct == "always" ? Direct::kAlways : Direct::kAuto;
}

}  // namespace

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
  expert_map_ = load_expert_map(control_, options_);
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
  control_.agreement.together([&] { session.direct = direct_of(options_, wire_choice_.wire, live()); });
  session.activity = &activity_;
  session_options_ = session;
  if (live_) live_->open(*model_.family);
  topology_.engine.experts = wanted_placement();
  if (live_ && live_directory(options_.sink)) session_options_.while_written = LiveUpdate::kWhileWritten;
  open_session();
  const int threads = file_threads(control_, trainer().has_value());
  readers_.emplace(trainer() && options_.read_threads > 0 ? static_cast<int>(options_.read_threads)
                                                          : threads);
  if (shard_place_) {
    writers_.emplace(file_threads(control_, topology_.inference_rank(control_.rank()).has_value()));
    sink_.emplace(control_, *session_, *writers_, *shard_place_);
  }
  startup_seconds_ = seconds_since(start);
}

ExpertPlacement UpdateJob::wanted_placement() {
  const std::optional<ExpertMap> published =
      live_ ? live_->published_experts(topology_.engine.ep) : std::nullopt;
  EngineLayout layout = topology_.engine;
  control_.agreement.together([&] {
    layout.experts = {};
    place_experts(options_, expert_map_, model_, layout);
    if (!published) return;
    const ExpertPlacement given = layout.experts;
    place_experts(options_, published, model_, layout);
    const bool same =
        given.epoch == layout.experts.epoch && given.fingerprint() == layout.experts.fingerprint();
    if (same || !expert_map_ || options_.command == "serve") return;
    throw UsageError(fmt::format(
        "--expert-map {}: is of epoch {}, but the engines of {} have map {} of epoch {}; leave the option "
        "out, "
        "and experts go where the engines say",
        expert_map_->origin, given.epoch, options_.sink, layout.experts.fingerprint(), layout.experts.epoch));
  });
  return layout.experts;
}

void UpdateJob::open_session() {
  session_.reset();
  if (live_) {
    control_.agreement.together(
        [&] { session_options_.parameters = live_->parameters(*model_.family, topology_.engine); });
    live_->plan_for(topology_.engine.experts);
  }
  session_.emplace(control_, *model_.family, topology_, limits_of(options_), session_options_);
}

bool UpdateJob::follow_experts() {
  if (!live_) return false;
  const ExpertPlacement wanted = wanted_placement();
  const ExpertPlacement& planned = topology_.engine.experts;
  if (wanted.epoch == planned.epoch && wanted.fingerprint() == planned.fingerprint()) {
    live_->plan_for(planned);
    return false;
  }
  topology_.engine.experts = wanted;
  open_session();
  describe(options_, model_, session_->plan(), wire_choice_, report_);
  if (control_.rank() == 0) {
    log_note(fmt::format("the engines have moved their experts: planned anew for epoch {} in {:.3f} s",
                         wanted.epoch, session_->start_seconds().plan));
  }
  return true;
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
  record.bound = stage_bound(record.seconds, report_.sent_bytes);
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
  record.partial = model_.family->choice() != nullptr;
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
  record.rate_gb_s = static_cast<double>(report_.sent_bytes) / record.seconds.update / 1e9;
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
