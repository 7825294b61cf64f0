#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "control/control.hpp"
#include "launch/files/output_file.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/job/shard_place.hpp"
#include "launch/job/trace_file.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "model/expert_map.hpp"
#include "plan/topology.hpp"
#include "report/activity.hpp"
#include "report/progress.hpp"
#include "report/update_report.hpp"
#include "session/session.hpp"
#include "session/wire_choice.hpp"
#include "sink/shard_sink.hpp"
#include "source/source.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

/// What differs from one update to the next.
struct Update {
  std::int64_t version = 0;
  std::string label;  ///< what the report calls the source
  bool verify = true;
  /// Gives this rank's source, null on a rank that is no trainer; it must stay until the update has ended.
  /// Called when nothing of the update has moved yet: the place to read headers, and to refuse. Throws by
  /// agreement. Collective.
  std::function<Source*()> source;
};

/// A job of updates: opens once what they share, and runs one update after the other, whoever asks for them.
class UpdateJob {
 public:
  /// `control` and `options` must outlive the job.
  UpdateJob(Control& control, const Options& options);

  /// Opens what the options describe: layout, wire, model, session, readers and sink. `check`, which does not
  /// communicate, may refuse the model before anything is allocated for it. `session`: all but the wire.
  /// Collective.
  void open(SessionOptions session, const std::function<void()>& check);
  /// Where running engines say where their experts sit: plans anew for what they say now. True where that is
  /// another map than the one planned for; sources of before are void then. Throws (by agreement) as open().
  /// Collective.
  bool follow_experts();
  /// From now on what every update does goes into `file`, which rank 0 has, if `--trace` names one.
  /// Collective.
  void begin_trace(OutputFile* file);
  /// Writes that file, if there is one; throws (by agreement) IoError. Collective.
  void write_trace();
  /// Says in the report what has been opened, and prints its head, with `columns` below it. Collective.
  void print_head(const std::string& columns);

  /// Where trainers or engines are running processes: waits until the trainers offer a version, and gives it;
  /// `otherwise` where none is live, and weights are read `from` files. True in `there`: every engine has it
  /// already, from there, and nothing is to be done.
  /// Throws (by agreement) as LiveUpdate::begin, UsageError when it is another version than `wanted`.
  /// Collective.
  std::int64_t begin_live(std::int64_t otherwise, const Checkpoint& from, bool& there,
                          std::optional<std::int64_t> wanted = std::nullopt);

  /// One update into parameter memory and the sink, its row in the report and on stdout. Throws AgreedFailure
  /// when it failed on all ranks alike: there is no row of it then, and the next update may follow.
  /// Collective.
  void update(const Update& update);
  /// The same without the row, which is returned with nothing in `bound`. Collective.
  UpdateRecord update_unreported(const Update& update);

  /// Reads the headers of a source. Collective.
  BoundCheckpoint load_source(const std::string& path);
  /// Weights that this rank reads from a checkpoint's files; null on a rank that is no trainer. One at a
  /// time, because all are read by readers(); `from` must outlive it. Looks at what must be equal in them,
  /// throws InputError where it is not. Does not communicate.
  std::unique_ptr<Source> file_source(const BoundCheckpoint& from);
  /// The same for a running trainer, or a checkpoint's files.
  std::unique_ptr<Source> source_of(const BoundCheckpoint& from);

  /// The number of this rank among the trainers, if it is one.
  std::optional<std::int64_t> trainer() const { return topology_.trainer(control_.rank()); }
  /// Where `--sink` has shard files written, if it does.
  const std::optional<ShardPlace>& shard_place() const { return shard_place_; }
  const WireChoice& wire_choice() const { return wire_choice_; }
  /// The running processes at the job's ends; null where there are none.
  LiveEnds* live() { return live_ ? &*live_ : nullptr; }
  Model& model() { return model_; }
  Session& session() { return *session_; }
  const Session& session() const { return *session_; }
  ThreadPool& readers() { return *readers_; }
  /// Also of what is not open yet: it then says which program runs which command.
  JobReport& report() { return report_; }
  const JobReport& report() const { return report_; }

 private:
  /// Where experts are to sit: as the engines say, else as the options do. Collective.
  ExpertPlacement wanted_placement();
  void open_session();

  Control& control_;
  const Options& options_;
  Progress progress_;
  Activity activity_;
  std::optional<ShardPlace> shard_place_;
  std::optional<ExpertMap> expert_map_;  ///< of the options
  Topology topology_;
  WireChoice wire_choice_;
  Model model_;
  SessionOptions session_options_;
  std::optional<Session> session_;
  std::optional<ThreadPool> readers_;
  std::optional<ThreadPool> writers_;
  std::optional<ShardSink> sink_;
  std::optional<LiveEnds> live_;
  std::optional<TraceFile> trace_;
  double startup_seconds_ = 0;
  JobReport report_;
};

}  // namespace weightcast
