#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <optional>
#include <set>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/file_threads.hpp"
#include "launch/files/overlap.hpp"
#include "launch/files/tensor_copy.hpp"
#include "launch/job.hpp"
#include "launch/layouts.hpp"
#include "launch/trace_file.hpp"
#include "launch/version.hpp"
#include "report/log.hpp"
#include "sink/shard_sink.hpp"
#include "source/file_source.hpp"
#include "sys/team.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The directory of `--sink hdf5:DIR`, or nothing for `none`.
std::optional<std::string> sink_directory(const std::string& sink) {
  constexpr std::string_view kHdf5 = "hdf5:";
  if (sink == "none") return std::nullopt;
  if (sink.starts_with(kHdf5) && sink.size() > kHdf5.size()) return sink.substr(kHdf5.size());
  throw UsageError(fmt::format("--sink {}: write none or hdf5:DIR", sink));
}

/// With stages that overlap perfectly an update takes as long as its slowest stage; that is the limit it is
/// compared with, because nobody has measured the wire.
LimitRecord stage_limit(const UpdateSeconds& s, std::int64_t model_bytes) {
  LimitRecord limit{"read alone", s.read, 0};
  if (s.transport > limit.gb_s) limit = {"wire alone", s.transport, 0};
  if (s.unpack + s.verify > limit.gb_s) limit = {"unpack and verify alone", s.unpack + s.verify, 0};
  const double slowest = std::max(limit.gb_s, 1e-9);
  limit.gb_s = static_cast<double>(model_bytes) / slowest / 1e9;
  limit.achieved = slowest / std::max(s.update, 1e-9);
  return limit;
}

/// Only the first checkpoint's own version counts: two sources that say the same would replace one another's
/// shards, and others would let versions go backwards.
std::int64_t version_of(const Options& options, const std::vector<Checkpoint>& checkpoints,
                        std::size_t number) {
  return version_of(options, checkpoints.front()) + static_cast<std::int64_t>(number);
}

/// Throws UsageError when the versions of all updates are more than there are numbers.
void require_versions(const Options& options, const std::vector<Checkpoint>& checkpoints) {
  const std::int64_t first = version_of(options, checkpoints, 0);
  const auto more = static_cast<std::int64_t>(options.sources.size()) - 1;
  if (first <= std::numeric_limits<std::int64_t>::max() - more) return;
  throw UsageError(
      fmt::format("{}: its weight version {} leaves no numbers for {} updates; name a smaller "
                  "--weight-version",
                  checkpoints.front().path, first, options.sources.size()));
}

/// One update a source, until all are done or a signal asks to stop.
class SyncJob {
 public:
  SyncJob(Control& control, const Options& options)
      : control_(control), options_(options), progress_(options.progress, control.rank() == 0) {
    report_.versions = version_line();
    report_.command = options.command;
  }

  void run() {
    run_job(
        control_, options_,
        [&](OutputFile* trace) {
          open(trace);
          for (std::size_t i = 0; i < options_.sources.size(); ++i) update(i);
          if (trace_) trace_->write(report_);
        },
        [&](ExitCode code, const std::string& line) {
          return report_json(report_, status_name(code), line);
        });
  }

 private:
  /// Throws UsageError when an update would replace or remove a file of some source.
  void require_sources_stay(const std::string& directory) const {
    std::set<std::string> folders;
    for (std::size_t i = 0; i < model_.checkpoints.size(); ++i) {
      folders.insert(sink_folder(directory, version_of(options_, model_.checkpoints, i)));
    }
    for (const Checkpoint& checkpoint : model_.checkpoints) {
      for (const std::string& folder : folders) require_no_shard_of_sink(folder, checkpoint);
    }
  }

  void open(OutputFile* trace) {
    const auto start = Clock::now();
    std::optional<std::string> directory;
    control_.agreement.together([&] {
      if (options_.sources.empty()) throw UsageError("--source PATH is needed, once for each update");
      directory = sink_directory(options_.sink);
      topology_ = topology_of(options_);
      require_world_size(topology_, control_.size());
    });
    const Placement placement = choose_placement(control_, options_.transport);
    model_ = load_model(control_, options_, topology_);
    control_.agreement.together([&] {
      require_versions(options_, model_.checkpoints);
      if (directory) require_sources_stay(*directory);
    });
    SessionOptions session_options;
    session_options.wire = placement.wire;
    session_.emplace(control_, *model_.family, topology_, limits_of(options_), session_options);
    const bool trainer = topology_.trainer(control_.rank()).has_value();
    const int reading = file_threads(control_, trainer);
    readers_.emplace(trainer && options_.read_threads > 0 ? static_cast<int>(options_.read_threads)
                                                          : reading);
    writers_.emplace(file_threads(control_, topology_.inference_rank(control_.rank()).has_value()));
    if (directory) sink_.emplace(control_, *session_, *writers_, *directory);
    if (!options_.trace.empty()) trace_.emplace(control_, *session_, trace);
    report_ = describe_job(control_, options_, model_, *session_, placement, seconds_since(start));
    if (control_.rank() == 0) print_report(header_text(report_));
  }

  void update(std::size_t number) {
    const std::int64_t version = version_of(options_, model_.checkpoints, number);
    std::optional<FileSource> source;
    control_.deadline.begin_phase("update to version", version);
    if (sink_) sink_->begin(version, options_.command);
    // Once more: what lies under the source's name may have been replaced since the job began.
    if (number > 0) load_source(control_, options_, number, topology_, model_);
    const Checkpoint& checkpoint = model_.checkpoints[number];
    const Binding& binding = model_.bindings[number];
    control_.agreement.together([&] {
      if (const int signal = soft_stop_signal(); signal != 0) {
        throw StoppedError(
            fmt::format("stopped by {} before the update to version {}; {} of {} updates are done",
                        signal_name(signal), version, number, options_.sources.size()));
      }
      const auto trainer = topology_.trainer(control_.rank());
      if (!trainer) return;
      require_equal_copies(options_, model_, number, *readers_, {*trainer, topology_.trainers},
                           [&] { control_.deadline.poll(); });
      source.emplace(session_->plan(), model_.family->catalog(), checkpoint, binding, *readers_);
    });
    if (control_.rank() == 0 && binding.cast_tensors > 0) log_note(checkpoint.path + ": " + binding.note());

    UpdateRecord record;
    record.weight_version = version;
    record.source = checkpoint.path;
    record.seconds = session_->update(source ? &*source : nullptr, version, !options_.no_verify, progress_);
    if (trace_) trace_->add(version);
    record.verified = !options_.no_verify;
    const auto start = Clock::now();
    if (sink_) sink_->write(version);
    record.seconds.write = seconds_since(start);
    record.rate_gb_s = static_cast<double>(report_.model_bytes) / record.seconds.update / 1e9;
    record.limit = stage_limit(record.seconds, report_.model_bytes);
    report_.updates.push_back(record);
    if (control_.rank() == 0) {
      report_in_place(control_, [&] { print_report(update_text(record, report_.model_bytes)); });
    }
  }

  Control& control_;
  const Options& options_;
  Progress progress_;
  Topology topology_;
  Model model_;
  std::optional<Session> session_;
  std::optional<Team> readers_;
  std::optional<Team> writers_;
  std::optional<ShardSink> sink_;
  std::optional<TraceFile> trace_;
  JobReport report_;
};

}  // namespace

void run_sync(Control& control, const Options& options) {
  SyncJob(control, options).run();
}

}  // namespace weightcast
