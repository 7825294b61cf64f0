#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/files/checkpoint_origin.hpp"
#include "launch/files/overlap.hpp"
#include "launch/job/run_job.hpp"
#include "launch/job/update_job.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

/// One update a source, until all are done or a signal asks to stop.
class SyncJob {
 public:
  SyncJob(Control& control, const Options& options)
      : control_(control), options_(options), job_(control, options) {}

  void run() {
    run_job(
        control_, options_,
        [&](OutputFile* trace) {
          control_.agreement.together([&] {
            if (options_.sources.empty()) throw UsageError("--source PATH is needed, once for each update");
          });
          job_.open({}, [&] {
            require_versions();
            require_sources_stay();
          });
          if (control_.rank() == 0) note_other_versions();
          job_.begin_trace(trace);
          job_.print_head(update_columns());
          for (std::size_t i = 0; i < options_.sources.size(); ++i) update(i);
          job_.write_trace();
          if (control_.rank() == 0) report_in_place(control_, [&] { print_line(done_text()); });
        },
        [&](ExitCode code, const std::string& line) {
          return report_json(job_.report(), status_name(code), line);
        });
  }

 private:
  /// Only the first checkpoint's own version counts: two sources that say the same would replace one
  /// another's shards, and others would let versions go backwards.
  std::int64_t version(std::size_t number) {
    return version_of(options_, job_.model().sources.front().checkpoint) + static_cast<std::int64_t>(number);
  }

  /// Throws UsageError when the versions of all updates are more than there are numbers.
  void require_versions() {
    const auto more = static_cast<std::int64_t>(options_.sources.size()) - 1;
    if (version(0) <= std::numeric_limits<std::int64_t>::max() - more) return;
    throw UsageError(
        fmt::format("{}: its weight version {} leaves no numbers for {} updates; name a smaller "
                    "--weight-version",
                    options_.sources.front(), version(0), options_.sources.size()));
  }

  /// Throws UsageError when an update would replace or remove a file of some source, or the files of another
  /// update into a folder that should be its own.
  void require_sources_stay() {
    if (!job_.shard_place()) return;
    std::set<std::string> folders;
    for (std::size_t i = 0; i < options_.sources.size(); ++i) {
      folders.insert(job_.shard_place()->folder(version(i)));
    }
    require_folders_apart(*job_.shard_place(), folders);
    const SinkFolders sinks(*job_.shard_place(), folders);
    for (const BoundCheckpoint& source : job_.model().sources) sinks.require_no_shard_of(source.checkpoint);
  }

  /// Says of which sources the updates have other numbers than these say themselves.
  void note_other_versions() {
    constexpr std::size_t kMostNamed = 3;
    std::vector<std::string> others;
    for (std::size_t i = 1; i < options_.sources.size(); ++i) {
      const std::int64_t says = job_.model().sources[i].checkpoint.weight_version.value_or(version(i));
      if (says == version(i)) continue;
      others.push_back(fmt::format("{} says {} and is written as {}", options_.sources[i], says, version(i)));
    }
    if (others.empty()) return;
    const std::size_t more = others.size() - std::min(others.size(), kMostNamed);
    others.resize(others.size() - more);
    log_note(fmt::format("weight versions count on from {}: {}{}", version(0), fmt::join(others, "; "),
                         more == 0 ? "" : fmt::format("; and {} more", more)));
  }

  void update(std::size_t number) {
    const std::string& path = options_.sources[number];
    BoundCheckpoint& from = job_.model().sources[number];
    std::unique_ptr<Source> source;
    bool there = false;
    std::int64_t target = version(number);
    const auto open_source = [&] {
      // Once more: what lies under the source's name may have been replaced since the job began.
      if (number > 0) from = job_.load_source(path);
      control_.agreement.together([&] {
        require_no_soft_stop(fmt::format("before the update to version {}; {} of {} updates are done", target,
                                         number, options_.sources.size()));
        source = job_.source_of(from);
      });
      if (control_.rank() == 0 && from.binding.cast_tensors > 0) log_note(path + ": " + from.binding.note());
      return source.get();
    };
    target = job_.begin_live(version(number), from.checkpoint, there);
    if (!there) return job_.update({target, path, !options_.no_verify, open_source});
    if (control_.rank() == 0)
      log_note(fmt::format("version {} is there already; nothing is to be done", target));
  }

  /// `# 4 shards, 2.33 GiB, in bigshards, verified: 13.1 s`
  std::string done_text() const {
    const JobReport& report = job_.report();
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const std::int64_t ranks = job_.session().plan().topology.engine.ranks();
    const std::string where =
        job_.shard_place()
            ? fmt::format("{}, {}, in {}", counted(ranks, "shard"),
                          format_bytes(report.direct_bytes + report.loader_bytes),
                          job_.shard_place()->directory)
            : fmt::format("{}, {}, in {}", counted(ranks, "inference rank"),
                          format_bytes(report.direct_bytes + report.loader_bytes),
                          options_.sink == "none" ? "their memory, which ends with the job" : options_.sink);
    const auto updates = static_cast<std::int64_t>(report.updates.size());
    if (updates == 0) return fmt::format("# nothing was to be done: {:.1f} s", seconds);
    const std::string checked = fmt::format("{}{}", report.partial ? "partial, " : "",
                                            options_.no_verify ? "not verified" : "verified");
    return fmt::format("# {}{}, {}: {:.1f} s", updates == 1 ? "" : counted(updates, "update") + ": ", where,
                       checked, seconds);
  }

  using Clock = std::chrono::steady_clock;

  Control& control_;
  const Options& options_;
  const Clock::time_point start_ = Clock::now();
  UpdateJob job_;
};

}  // namespace

void run_sync(Control& control, const Options& options) {
  SyncJob(control, options).run();
}

}  // namespace weightcast
