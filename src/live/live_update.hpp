#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "control/control.hpp"
#include "live/exporter.hpp"
#include "live/folder.hpp"
#include "model/family.hpp"

namespace weightcast {

/// The turns that trainers, the job step and engines take in an update of live memory; what each may find
/// when another dies is in src/README.md. All ranks go through it together. One update after another.
class LiveUpdate {
 public:
  /// What a job step that ends while it writes engines' memory leaves.
  static constexpr const char* kWhileWritten =
      "the engines that were being written are invalid until the next update";

  /// `trainer` and `engine` are this rank's exporters, null where it has none. `directory` holds the
  /// manifests, and will hold the record of each commit; empty where there is no live engine. An answer that
  /// does not come within `patience` ends the update. `family`: what is sent. All references must outlive
  /// this.
  LiveUpdate(Control& control, std::string directory, Exporter* trainer, Exporter* engine,
             std::chrono::seconds patience, const Family& family);
  ~LiveUpdate();
  LiveUpdate(const LiveUpdate&) = delete;
  LiveUpdate& operator=(const LiveUpdate&) = delete;

  /// Where the updates that follow place experts. `require_in_place` throws where this rank's engine has
  /// moved them since; null on all ranks where no engine says where they are. Does not communicate.
  void plan_for(const ExpertPlacement& experts, std::function<void()> require_in_place);

  /// Takes all exporters, and waits until all live trainers offer one version, which it returns. Where no
  /// trainer is live: `otherwise`, and `files` says, on rank 0, which files the weights are in, another
  /// number for others. Throws AgreedFailure; nothing is taken then. Collective.
  std::int64_t begin(std::int64_t otherwise, std::uint64_t files);

  /// Behind begin(): this update moves what engines have of that version, and brings nothing. So its record
  /// says of the weights what the record of their last update says, and that nothing is known of them where
  /// they have loaded them otherwise since. An engine that does not serve the version when it pauses is
  /// refused. Throws AgreedFailure. Collective.
  void move(std::int64_t version);

  /// Whether every engine has that version already, from the same publications of the trainers or the same
  /// files; false where none is live. The same number alone is no proof of the same weights: trainers may
  /// have been started anew, and the update that brought it may have brought only a part. Collective.
  bool is_there(std::int64_t version);

  /// Ends an update that is not needed: what the trainers offered has been read. Does not communicate.
  void leave();

  /// Asks the engines and waits until all have paused; from here on their memory may be written. Throws
  /// AgreedFailure, and the engines then go on with what they had. An engine that serves a newer version is
  /// refused unless `allow_older`, and in a partial update one that has no version, or another than the
  /// others have. Collective.
  void pause(std::int64_t version, bool allow_older);

  /// All of the version is in every engine's memory, verified: it becomes theirs, on all ranks or on none.
  /// Throws AgreedFailure. Collective.
  void commit(std::int64_t version);

  /// The update has failed, for that reason: every exporter learns what is true now. Where no engine's memory
  /// has been `written`, all have what they had. Does nothing when there is no update under way. Does not
  /// communicate.
  void fail(const std::string& reason, bool written) noexcept;

 private:
  void take();
  void give_back() noexcept;
  using Clock = std::chrono::steady_clock;

  /// A moment of a wait for an exporter that has not done `what`. Throws IoError when it has died,
  /// TimeoutError behind `give_up`, StoppedError on a signal.
  void wait_on(const Exporter& exporter, Clock::time_point give_up, const std::string& what);
  /// Waits until all live trainers offer one version, which it returns; nothing where no trainer is live.
  /// Throws AgreedFailure as soon as one dies. Collective.
  std::optional<std::int64_t> await_one_version();
  /// Waits for `done` to say so of each rank's exporter, of which it may have none, until the patience is
  /// over. Throws AgreedFailure as soon as one dies or `done` throws. Collective.
  template <typename Done>
  void await(const Exporter* exporter, const char* what, Done done);
  /// Throws AgreedFailure unless all engines serve one version. Collective.
  void require_one_version();
  /// The number of this update. Throws AgreedFailure. Collective.
  std::uint64_t next_update();
  /// What `origin_` is where trainers are live, `files` otherwise. Collective.
  std::uint64_t origin_of_all(std::uint64_t files);
  /// On rank 0: the record of the last commit, if that is of that version from the same origin. Throws
  /// IoError.
  std::optional<CommitRecord> record_of(std::int64_t version) const;
  /// Writes the record of a commit under a name of its own, `DIR/commit-12.json.new`, which is not yet a
  /// decision. Throws IoError when the folder takes no file, or its name is taken.
  void prepare_record(std::int64_t version) const;
  /// Gives it its name.
  void name_record() const;
  std::string prepared_path() const;
  /// What a rank can say that is ended while the first one names the record.
  std::string unknown_to_this_rank(std::int64_t version) const;
  void remove_earlier_records() const noexcept;

  Control& control_;
  std::string directory_;
  Exporter* trainer_;
  Exporter* engine_;
  std::chrono::seconds patience_;
  const Family& family_;
  ExpertPlacement experts_;
  std::function<void()> require_in_place_;
  bool asked_ = false;    ///< this rank's engine, in this update
  bool reading_ = false;  ///< this rank's trainer
  std::uint64_t update_ = 0;
  /// What engines have is moved.
  bool moves_ = false;
  std::optional<CommitRecord> moved_;        ///< on rank 0: by which they have it; nothing: not known
  std::uint64_t origin_ = 0;                 ///< on rank 0: of which publications or files the weights are
  weightcast_state rest_ = WEIGHTCAST_NONE;  ///< of the engine before the update
};

}  // namespace weightcast
