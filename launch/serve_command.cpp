#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/job/job_report.hpp"
#include "launch/job/run_job.hpp"
#include "launch/job/update_job.hpp"
#include "launch/landing.hpp"
#include "launch/layouts.hpp"
#include "launch/serve/exporter_wait.hpp"
#include "launch/serve/exporter_watch.hpp"
#include "launch/serve/idle.hpp"
#include "launch/serve/listener.hpp"
#include "launch/serve/next_order.hpp"
#include "launch/serve/server_file.hpp"
#include "launch/serve/socket_folder.hpp"
#include "live/folder.hpp"
#include "live/manifest.hpp"
#include "report/log.hpp"
#include "storage/output_lock.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

/// Where triggers reach the server; on rank 0.
struct Door {
  explicit Door(const std::string& directory)
      : listener(folder.socket()), file(directory, own_address(folder.socket())) {}

  SocketFolder folder;
  Listener listener;
  ServerFile file;
};

/// A job that stays open: one update after the other, whenever somebody asks for one or the trainers offer
/// one.
class Server {
 public:
  Server(Control& control, const Options& options)
      : control_(control), options_(options), next_(options.on_offer) {
    report_.command = options.command;
  }

  void run() {
    run_job(
        control_, options_, [&](OutputFile* /*trace*/) { serve(); },
        [&](ExitCode code, const std::string& line) { return report_json(report_, status_name(code), line); },
        [&](ExitCode code, const std::string& line) {
          if (door_) door_->listener.close({code, "", "", line});
          door_.reset();
        });
  }

 private:
  [[noreturn]] void serve() {
    const std::shared_ptr<const LandingMap> landing = load_landing(control_, options_);
    control_.agreement.together([&] {
      directory_ = live_folder();
      watch_exporters(landing.get());
      if (control_.rank() != 0) return;
      lock_.emplace(file_lock(server_file_path(directory_)), "live:" + directory_, options_.command);
      if (!lock_->note().empty()) log_note(lock_->note());
      remove_dead_server(directory_);
    });
    Idle idle(control_);
    if (options_.wait > 0)
      wait_for_exporters(control_, options_, topology_of(options_, landing.get()), idle, *watch_);
    open();
    control_.agreement.together([&] {
      if (control_.rank() != 0) return;
      door_.emplace(directory_);
      log_note(fmt::format("waiting for weightcast trigger {}{}", directory_,
                           options_.on_offer ? " and for what trainers offer" : ""));
    });
    // What is being written is written to its end, and a server that waits ends in good order.
    const Deadline::DeferSignals defer(control_.deadline);
    for (;;) {
      const Order order = idle.wait(
          "waiting for a request", [&] { return watch_->look(live()); },
          [&](std::span<const Sight> sights) { return decide(sights); });
      follow(order);
    }
  }

  /// The folder of the manifests and of server.json. Throws UsageError.
  std::string live_folder() const {
    if (options_.sources.size() != 1) throw UsageError("--source PATH or live:DIR is needed, once");
    const auto to = live_directory(options_.sink);
    const auto from = live_directory(options_.sources.front());
    if (!to && !from) {
      throw UsageError("serve is for running processes; name them with --source live:DIR or --sink live:DIR");
    }
    if (options_.on_offer && !from) {
      throw UsageError("--on-offer: files offer nothing; name trainers with --source live:DIR");
    }
    return to ? *to : *from;
  }

  /// Those of this rank.
  void watch_exporters(const LandingMap* landing) {
    const Topology topology = topology_of(options_, landing);
    const auto manifest_of = [](const std::string& place, Role role, std::optional<std::int64_t> number) {
      const auto directory = live_directory(place);
      return directory && number ? std::optional(manifest_path(*directory, role, *number)) : std::nullopt;
    };
    watch_.emplace(manifest_of(options_.sources.front(), Role::kTrainer, topology.trainer(control_.rank())),
                   manifest_of(options_.sink, Role::kEngine, topology.inference_rank(control_.rank())));
  }

  const LiveEnds* live() { return job_ ? job_->live() : nullptr; }

  /// Maps what is published now, and opens the session. Throws AgreedFailure; nothing is open then.
  void open() {
    close();
    control_.deadline.begin_phase("start");
    watch_->note();
    job_.emplace(control_, options_);
    try {
      job_->open({}, [] {});
      const Family& family = *job_->model().family;
      names_ = family.whole_catalog().hash_of_names();
      if (const Choice* const choice = family.choice(); choice != nullptr) choice_ = *choice;
      job_->print_head(update_columns());
    } catch (const AgreedFailure&) {
      close();
      throw;
    }
    release_staging();
    const std::vector<UpdateRecord> updates = std::move(report_.updates);
    report_ = job_->report();
    report_.updates = updates;
  }

  /// Of a server that is told to. Collective.
  void release_staging() {
    if (!options_.release_staging) return;
    source_.reset();
    job_->session().release_staging();
  }

  void close() {
    source_.reset();
    job_.reset();
  }

  /// On rank 0: what is to be done next; sleeps for a moment, from which a request wakes it, where that is
  /// nothing.
  Order decide(std::span<const Sight> sights) {
    constexpr std::chrono::microseconds kSleep{2500};
    const std::optional<Listener::Waiting> waiting = door_->listener.first(kSleep);
    const auto now = Clock::now();
    if (now >= next_look_) {
      next_look_ = now + std::chrono::milliseconds(500);
      if (!door_->file.is_there()) return {Order::kLost};
    }
    std::optional<UpdateRequest> request;
    if (waiting) request = waiting->request;
    const auto first = waiting ? std::optional(waiting->number) : std::nullopt;
    if (first != first_) waits_since_.reset();
    first_ = first;
    if (request) {
      std::optional<UpdateAnswer> answer = answer_at_once(*request, sights);
      if (answer && answer->was_there && is_served_in_part(*request->version)) answer.reset();
      if (!answer && not_opened_for_ == first) answer = not_opened_;
      not_opened_for_.reset();
      if (answer) {
        if (!answer->note.empty()) log_note(answer->note);
        answer_first(*answer);
        return {};
      }
    }
    const Order order = next_.next(sights, job_.has_value(), request, now);
    if (order.what != Order::kNothing || !request) {
      waits_since_.reset();
    } else if (!waits_since_) {
      waits_since_ = now;
    } else if (now - *waits_since_ > patience_of(options_)) {
      answer_first({ExitCode::kTimeout, "", "",
                    fmt::format("no version was offered by all trainers within {} s: {}",
                                patience_of(options_).count(), offers_text(sights))});
    }
    return order;
  }

  /// Whether the last update of the engines' folder is to that version and has brought less of it than this
  /// server's do. Where that cannot be said, an update finds out, on all ranks together.
  bool is_served_in_part(std::int64_t version) const {
    const auto to = live_directory(options_.sink);
    if (!to) return false;
    std::vector<CommitRecord> records;
    try {
      records = find_commits(*to);
    } catch (const Error&) {
      return true;
    }
    const auto last = std::ranges::find_if(records, [](const auto& one) { return one.version.has_value(); });
    if (last == records.end() || last->version != version) return false;
    if (!names_) return last->partial.has_value();
    return !brings(*last, *names_, choice_ ? &*choice_ : nullptr);
  }

  void answer_first(const UpdateAnswer& answer) {
    waits_since_.reset();
    door_->listener.begin_update(first_);
    door_->listener.end_update(answer);
  }

  /// Collective. Throws AgreedFailure when the server is to end.
  void follow(const Order& order) {
    switch (order.what) {
      case Order::kStop:
        control_.deadline.begin_phase("end");
        control_.agreement.together([&] {
          throw StoppedError(fmt::format("stopped by {} while waiting for a request; {} updates are done",
                                         signal_name(static_cast<int>(order.signal)), updates_));
        });
        break;
      case Order::kLost:
        control_.deadline.begin_phase("end");
        control_.agreement.together([&] {
          if (control_.rank() != 0) return;
          throw IoError(
              fmt::format("{}: was removed or replaced, and nobody finds this server any more; start "
                          "it again; {} updates are done",
                          door_->file.path(), updates_));
        });
        break;
      case Order::kRelease:
        close();
        if (control_.rank() == 0)
          log_note("a trainer or an engine has gone or published anew; its memory is let go");
        break;
      case Order::kOpen:
        open_for(order);
        break;
      default:
        begin_update(order);
        const UpdateAnswer answer = update(order);
        end_update(order, answer);
        // Its line is the server's.
        if (answer.code == ExitCode::kStopped) throw AgreedFailure(answer.code, answer.error);
    }
  }

  void open_for(const Order& order) {
    try {
      open();
    } catch (const AgreedFailure& failure) {
      if (order.for_request == 0) note_failure(failure.what());
      // Who has come back since the last look may have what is asked for.
      not_opened_for_ = order.for_request != 0 ? first_ : std::nullopt;
      not_opened_ = {failure.code(), "", "", failure.what()};
    }
  }

  /// Of what nobody has asked for. It is tried again and again, and said once for as long as it fails alike.
  void note_failure(const std::string& line) {
    next_.failed(Clock::now());
    control_.agreement.note_said(line);
  }
  void note_success() {
    next_.succeeded();
    control_.agreement.forget_said();
  }

  void begin_update(const Order& order) {
    if (control_.rank() != 0) return;
    door_->listener.begin_update(order.for_request != 0 ? first_ : std::nullopt);
  }

  void end_update(const Order& order, const UpdateAnswer& answer) {
    if (order.for_request == 0) {
      answer.code == ExitCode::kDone ? note_success() : note_failure(answer.error);
    }
    if (control_.rank() != 0) return;
    if (!answer.note.empty()) log_note(answer.note);
    try {
      print_report(answer.report);
    } catch (const IoError& unwritten) {
      // The version is committed, and whoever asked is told.
      log_note(unwritten.what());
    }
    door_->listener.end_update(answer);
  }

  /// One update, which may fail without harm to the next one.
  UpdateAnswer update(const Order& order) {
    UpdateAnswer answer;
    try {
      control_.deadline.begin_phase("before the update");
      if (exporters_have_changed()) open();
      // Before the engines are asked, which wait from then on.
      follow_experts();
      job_->session().take_staging();
      answer = update_where_experts_sit(order);
    } catch (const AgreedFailure& failure) {
      answer = {failure.code(), "", "", failure.what()};
    }
    if (job_) release_staging();
    // What has been compiled for trainers' memory stays true for as long as that is mapped; files are not
    // kept open.
    if (!live_directory(options_.sources.front())) source_.reset();
    return answer;
  }

  /// Collective.
  bool exporters_have_changed() {
    std::array<std::int64_t, 1> seen{watch_->look_now(live()).exporters};
    control_.agreement.maximum(std::span<std::int64_t>(seen));
    return seen.front() != Sight::kMapped;
  }

  /// Whether the engines have moved experts since the session was planned, which then is planned anew.
  bool follow_experts() {
    try {
      if (!job_->follow_experts()) return false;
    } catch (const AgreedFailure&) {
      close();
      throw;
    }
    source_.reset();
    return true;
  }

  /// An update that experts move away from before anything is written begins again.
  UpdateAnswer update_where_experts_sit(const Order& order) {
    constexpr int kMostMoves = 8;
    for (int moves = 0;; ++moves) {
      try {
        return update_open(order);
      } catch (const AgreedFailure&) {
        if (moves == kMostMoves || !follow_experts()) throw;
      }
    }
  }

  UpdateAnswer update_open(const Order& order) {
    std::optional<std::int64_t> wanted;
    if (order.version != Sight::kNone) wanted = order.version;
    const std::string& path = options_.sources.front();
    BoundCheckpoint& from = job_->model().sources.front();
    std::int64_t of_file = 0;
    if (!live_directory(path)) {
      // What lies under the source's name may have been replaced.
      from = job_->load_source(path);
      control_.agreement.together([&] { of_file = version_of_file(from.checkpoint, wanted); });
    }
    bool there = false;
    const std::int64_t version = job_->begin_live(of_file, from.checkpoint, there, wanted);
    if (there) return there_already(version);
    const auto open_source = [&] {
      control_.agreement.together([&] {
        if (!source_) source_ = job_->source_of(from);
      });
      return source_.get();
    };
    UpdateRecord record = job_->update_unreported({version, path, !options_.no_verify, open_source});
    record.bound = stage_bound(record.seconds, report_.sent_bytes);
    keep(record);
    return {ExitCode::kDone, update_text(record), "", "", version};
  }

  /// Throws UsageError when the file says another version than the request.
  static std::int64_t version_of_file(const Checkpoint& checkpoint, std::optional<std::int64_t> wanted) {
    const std::optional<std::int64_t> says = checkpoint.weight_version;
    if (says && wanted && *says != *wanted) {
      throw UsageError(fmt::format("--weight-version {}: {} is of version {}; ask for that one, or for none",
                                   *wanted, checkpoint.path, *says));
    }
    return says ? *says : wanted.value_or(0);
  }

  /// The last ones are in the report.
  void keep(const UpdateRecord& record) {
    constexpr std::size_t kMostRows = 1000;
    ++updates_;
    if (report_.updates.size() == kMostRows) report_.updates.erase(report_.updates.begin());
    report_.updates.push_back(record);
  }

  Control& control_;
  const Options& options_;
  std::string directory_;
  std::optional<OutputLock> lock_;  ///< on rank 0, as what follows
  std::optional<Door> door_;
  std::optional<std::uint64_t> first_;            ///< number of the request that waits, as decided upon
  std::optional<Clock::time_point> waits_since_;  ///< that request, for trainers
  std::optional<std::uint64_t> not_opened_for_;   ///< number of the request for which that failed last
  UpdateAnswer not_opened_;                       ///< and why
  Clock::time_point next_look_;                   ///< at server.json
  NextOrder next_;
  std::optional<ExporterWatch> watch_;
  std::optional<UpdateJob> job_;      ///< nothing while exporters are gone
  std::optional<std::string> names_;  ///< of all of the model (Catalog::hash_of_names()), once it is known
  std::optional<Choice> choice_;      ///< of the model, in all updates; nothing: all of it
  std::unique_ptr<Source> source_;    ///< of the last update
  std::int64_t updates_ = 0;
  JobReport report_;
};

}  // namespace

void run_serve(Control& control, const Options& options) {
  Server(control, options).run();
}

}  // namespace weightcast
