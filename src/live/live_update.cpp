#include "live/live_update.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "client/block.hpp"
#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "storage/durable_file.hpp"
#include "storage/file_replacement.hpp"

namespace weightcast {

namespace {

using client::is_at_rest;

}  // namespace

LiveUpdate::LiveUpdate(Control& control, std::string directory, Exporter* trainer, Exporter* engine,
                       std::chrono::seconds patience, const Family& family)
    : control_(control),
      directory_(std::move(directory)),
      trainer_(trainer),
      engine_(engine),
      patience_(patience),
      family_(family) {}

LiveUpdate::~LiveUpdate() {
  fail("the job step has ended amid the update", true);
}

void LiveUpdate::plan_for(const ExpertPlacement& experts, std::function<void()> require_in_place) {
  experts_ = experts;
  require_in_place_ = std::move(require_in_place);
}

void LiveUpdate::wait_on(const Exporter& exporter, Clock::time_point give_up, const std::string& what) {
  exporter.require_there();
  if (Clock::now() > give_up) {
    throw TimeoutError(fmt::format(
        "{}: {} has not {} within {} s; nothing was written: look what it does (weightcast inspect "
        "live:DIR), or raise --timeout",
        exporter.manifest().path, exporter.name(), what, patience_.count()));
  }
  control_.deadline.poll();
  // Of a rank that defers signals for the sake of what is being written: here nothing is yet.
  if (const int signal = hard_stop_signal(); signal != 0) {
    throw StoppedError(fmt::format("stopped by {} while {} had not {}; nothing was written",
                                   signal_name(signal), exporter.name(), what));
  }
  exporter.await_change();
}

template <typename Done>
void LiveUpdate::await(const Exporter* exporter, const char* what, Done done) {
  const auto give_up = Clock::now() + patience_;
  const auto look = [&] {
    if (exporter == nullptr || done()) return true;
    wait_on(*exporter, give_up, what);
    return false;
  };
  // All look in step: where one need not go on waiting, because its exporter declines or has died, none does.
  bool seen = false;
  for (std::array<std::int64_t, 1> waiting{1}; waiting[0] != 0;) {
    control_.agreement.together([&] { seen = seen || look(); });
    waiting[0] = seen ? 0 : 1;
    control_.agreement.maximum(std::span<std::int64_t>(waiting));
  }
}

void LiveUpdate::take() {
  const std::string owner = fmt::format("rank {} on {}", control_.rank(), control_.host());
  const auto take = [&](Exporter* exporter) {
    await(exporter, "seen that an earlier job is gone", [=] { return exporter->take(owner); });
  };
  // The first of each role before all others: of two jobs that begin at once one finds all of the rest free.
  for (Exporter* exporter : {engine_, trainer_}) {
    take(exporter != nullptr && exporter->manifest().rank == 0 ? exporter : nullptr);
  }
  take(trainer_);
  take(engine_);
}

void LiveUpdate::give_back() noexcept {
  if (trainer_ != nullptr) trainer_->give_back();
  if (engine_ != nullptr) engine_->give_back();
}

std::uint64_t LiveUpdate::next_update() {
  // Above all that any exporter has heard of, and above all records: none stands for this update.
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();
  constexpr std::uint64_t kMost = std::uint64_t{1} << 55;  // a state's word has room for it and the next
  // The last one; the greatest that an engine has heard of, and the negative of the least.
  std::array<std::int64_t, 3> seen{0, kNone, kNone};
  std::int64_t& last = seen[0];
  control_.agreement.together([&] {
    for (const Exporter* exporter : {trainer_, engine_}) {
      if (exporter == nullptr) continue;
      if (exporter->update() > kMost) {
        throw InputError(fmt::format("{}: its control block has number {}, which no update has; publish anew",
                                     exporter->manifest().path, exporter->update()));
      }
      last = std::max(last, static_cast<std::int64_t>(exporter->update()));
    }
    if (engine_ != nullptr) {
      const auto heard = static_cast<std::int64_t>(engine_->update());
      seen[1] = heard;
      seen[2] = -heard;
    }
    if (control_.rank() != 0 || directory_.empty()) return;
    const std::vector<std::uint64_t> recorded = updates_recorded(directory_);
    if (recorded.empty()) return;
    if (recorded.front() > kMost) {
      throw InputError(commit_path(directory_, recorded.front()) +
                       ": no update has that number; remove the file");
    }
    last = std::max(last, static_cast<std::int64_t>(recorded.front()));
  });
  control_.agreement.maximum(std::span<std::int64_t>(seen));
  const auto next = static_cast<std::uint64_t>(last) + 1;
  if (directory_.empty() || seen[1] == -seen[2]) return next;
  // A job step that died had asked some ranks of an engine, and others may still wait for that question: from
  // a greater number they see that it is over.
  if (engine_ != nullptr) engine_->renumber(next);
  return next + 1;
}

std::optional<std::int64_t> LiveUpdate::await_one_version() {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();
  const auto give_up = Clock::now() + patience_;
  for (;;) {
    // Whether a trainer offers nothing; the greatest offer, and the negative of the least.
    std::array<std::int64_t, 3> seen{0, kNone, kNone};
    BlockState own;
    if (trainer_ != nullptr) {
      own = trainer_->look();
      seen = {1, kNone, kNone};
      // What a process has stored there need not be a version: those count from 0.
      if (own.state == WEIGHTCAST_OFFERS && own.version >= 0) seen = {0, own.version, -own.version};
    }
    control_.agreement.maximum(std::span<std::int64_t>(seen));
    const auto [missing, greatest, minus_least] = seen;
    if (missing == 0 && greatest == kNone) return std::nullopt;
    if (missing == 0 && greatest == -minus_least) return greatest;
    control_.agreement.together([&] {
      if (trainer_ == nullptr) return;
      // An older one may be about to become the others'.
      if (own.state == WEIGHTCAST_OFFERS && own.version == greatest) return trainer_->require_there();
      const std::string of_others =
          greatest == kNone ? "a version" : fmt::format("version {} as another trainer has", greatest);
      wait_on(*trainer_, give_up, fmt::format("offered {} ({})", of_others, in_words(own)));
    });
  }
}

std::uint64_t LiveUpdate::origin_of_all(std::uint64_t files) {
  // The sum does not depend on which rank has which trainer.
  std::array<std::uint64_t, 2> trainers{0, 0};
  if (trainer_ != nullptr) {
    const Manifest& manifest = trainer_->manifest();
    trainers = {1, Hasher().add(manifest.rank).add(manifest.generation).digest()};
  }
  control_.agreement.sum(std::span<std::uint64_t>(trainers));
  return trainers[0] == 0 ? files : trainers[1];
}

std::optional<CommitRecord> LiveUpdate::record_of(std::int64_t version) const {
  const std::vector<CommitRecord> records = find_commits(directory_);
  const auto last = std::find_if(records.begin(), records.end(),
                                 [](const CommitRecord& record) { return record.version.has_value(); });
  const bool same = last != records.end() && last->version == version && last->origin == origin_text(origin_);
  return same ? std::optional(*last) : std::nullopt;
}

std::int64_t LiveUpdate::begin(std::int64_t otherwise, std::uint64_t files) {
  moves_ = false;
  moved_.reset();
  try {
    take();
    update_ = next_update();
    origin_ = origin_of_all(files);
    const std::int64_t version = await_one_version().value_or(otherwise);
    control_.agreement.together([&] {
      if (trainer_ == nullptr) return;
      reading_ = trainer_->change(WEIGHTCAST_OFFERS, WEIGHTCAST_BEING_READ);
      // It may have offered another version since all agreed on this one.
      if (reading_ && trainer_->version() == version) return;
      throw IoError(trainer_->manifest().path + ": " + trainer_->name() +
                    " has withdrawn what it offered; run the update again");
    });
    return version;
  } catch (const AgreedFailure& failure) {
    fail(failure.what(), false);
    throw;
  }
}

void LiveUpdate::move(std::int64_t version) {
  moves_ = true;
  std::optional<CommitRecord> last;
  std::array<std::int64_t, 1> brought{0};
  control_.agreement.together([&] {
    if (control_.rank() != 0) return;
    for (const CommitRecord& record : find_commits(directory_)) {
      if (!record.version) continue;
      if (record.version == version) last = record;
      break;
    }
    if (last) brought[0] = static_cast<std::int64_t>(last->update);
  });
  control_.agreement.maximum(std::span<std::int64_t>(brought));
  std::array<std::int64_t, 1> other{0};
  if (engine_ != nullptr) other[0] = static_cast<std::int64_t>(engine_->update()) == brought[0] ? 0 : 1;
  control_.agreement.maximum(std::span<std::int64_t>(other));
  if (other[0] == 0) moved_ = last;
}

bool LiveUpdate::is_there(std::int64_t version) {
  // Nobody's memory says what there is.
  if (directory_.empty()) return false;
  std::array<std::int64_t, 1> brought{0};
  const char* why = "not known to be from this source";
  control_.agreement.together([&] {
    if (control_.rank() != 0) return;
    const std::optional<CommitRecord> record = record_of(version);
    if (!record) return;
    if (!require_in_place_ && !placed_as(*record, experts_)) {
      why = "placed by another expert map";
    } else if (brings(*record, family_.whole_catalog().hash_of_names(), family_.choice())) {
      brought[0] = static_cast<std::int64_t>(record->update);
    } else {
      why = record->partial ? "in part alone" : "not known to have all that is sent now";
    }
  });
  control_.agreement.maximum(std::span<std::int64_t>(brought));
  // Whether an engine has another version; whether one has it from elsewhere.
  std::array<std::int64_t, 2> missing{0, 0};
  if (engine_ != nullptr) {
    missing[0] = engine_->current_version() == version ? 0 : 1;
    missing[1] = static_cast<std::int64_t>(engine_->update()) == brought[0] ? 0 : 1;
  }
  control_.agreement.maximum(std::span<std::int64_t>(missing));
  if (missing[0] == 0 && missing[1] != 0 && control_.rank() == 0) {
    log_note(fmt::format("the engines have version {} already, but {}; it is sent", version, why));
  }
  return missing[0] == 0 && missing[1] == 0;
}

void LiveUpdate::leave() {
  if (trainer_ != nullptr) trainer_->change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ);
  reading_ = false;
  give_back();
}

void LiveUpdate::pause(std::int64_t version, bool allow_older) {
  try {
    await(engine_, "ended what it was doing", [&] { return is_at_rest(engine_->state()); });
    control_.agreement.together([&] {
      if (engine_ == nullptr) return;
      rest_ = engine_->state();
      if (rest_ == WEIGHTCAST_SERVING && engine_->version() > version && !allow_older) {
        throw UsageError(
            fmt::format("{}: {} serves version {}, and {} is older; start the job, or the server, with "
                        "--allow-older if that is meant",
                        engine_->manifest().path, engine_->name(), engine_->version(), version));
      }
      if (family_.choice() != nullptr && rest_ != WEIGHTCAST_SERVING) {
        throw UsageError(
            fmt::format("{}: {} has no version of which a part could stay ({}); run an update without "
                        "--include and --exclude first",
                        engine_->manifest().path, engine_->name(), in_words(engine_->look())));
      }
    });
    if (family_.choice() != nullptr) require_one_version();
    // A folder that takes no record is noticed while every engine still has what it had.
    control_.agreement.together([&] {
      if (control_.rank() == 0 && !directory_.empty()) prepare_record(version);
    });
    control_.agreement.together([&] {
      if (engine_ == nullptr) return;
      asked_ = engine_->ask(rest_, update_, version);
      if (!asked_) {
        throw IoError(engine_->manifest().path + ": " + engine_->name() +
                      " has changed its state; try again");
      }
    });
    await(engine_, "paused", [&] {
      if (engine_->state() == WEIGHTCAST_ASKED) return false;
      if (engine_->state() == WEIGHTCAST_PAUSED) return true;
      throw IoError(fmt::format("{}: {} has declined: {}; ask again when it can be written",
                                engine_->manifest().path, engine_->name(), engine_->reason()));
    });
    // An engine that finds the job step dead from here on cannot know that nothing has been written.
    if (!directory_.empty()) control_.deadline.put_in_place(kWhileWritten);
    control_.agreement.together([&] {
      // While nothing has been written the others keep what they have. And no rank writes before each one
      // would say so.
      for (const Exporter* exporter : {trainer_, engine_}) {
        if (exporter != nullptr) exporter->require_there();
      }
      if (require_in_place_) require_in_place_();
      // From its pause on it says no other version.
      if (moves_ && engine_ != nullptr && (rest_ != WEIGHTCAST_SERVING || engine_->version() != version)) {
        throw IoError(
            fmt::format("{}: {} does not serve version {} any more; run it again, or an update first",
                        engine_->manifest().path, engine_->name(), version));
      }
    });
    control_.agreement.together([&] {
      if (engine_ == nullptr || engine_->change(WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING)) return;
      throw IoError(fmt::format("{}: {} did not wait: {}; run the update again", engine_->manifest().path,
                                engine_->name(), engine_->reason()));
    });
  } catch (const AgreedFailure& failure) {
    fail(failure.what(), false);
    throw;
  }
}

void LiveUpdate::require_one_version() {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();
  // The greatest, and the negative of the least.
  std::array<std::int64_t, 2> seen{kNone, kNone};
  // What a process has stored there need not be a version: those count from 0.
  const std::int64_t own = engine_ != nullptr ? std::max<std::int64_t>(0, engine_->version()) : kNone;
  if (engine_ != nullptr) seen = {own, -own};
  control_.agreement.maximum(std::span<std::int64_t>(seen));
  control_.agreement.together([&] {
    const std::int64_t greatest = seen[0];
    if (engine_ == nullptr || own == greatest) return;
    throw UsageError(
        fmt::format("{}: {} serves version {} and others {}, and what stays would be of both; run an update "
                    "without --include and --exclude first",
                    engine_->manifest().path, engine_->name(), own, greatest));
  });
}

std::string LiveUpdate::prepared_path() const {
  return commit_path(directory_, update_) + ".new";
}

void LiveUpdate::prepare_record(std::int64_t version) const {
  const std::string path = commit_path(directory_, update_);
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::symlink_status(path, ignored))) {
    throw IoError(path + ": is in the way of the record of this update; remove it");
  }
  std::filesystem::remove(prepared_path(), ignored);
  nlohmann::ordered_json record = {{"weightcast", 1},
                                   {"update", update_},
                                   {"version", version},
                                   {"origin", origin_text(origin_)},
                                   {"names", family_.whole_catalog().hash_of_names()}};
  if (!experts_.contiguous() || experts_.epoch != 0) {
    record["expert_epoch"] = experts_.epoch;
    record["expert_placement"] = experts_.fingerprint();
  }
  if (const Choice* const choice = family_.choice(); choice != nullptr)
    record["partial"] = choice_json(*choice);
  if (moves_) {
    record["origin"] = moved_ ? moved_->origin : "";
    record["names"] = moved_ ? moved_->names : "";
    if (moved_ && moved_->partial) record["partial"] = choice_json(*moved_->partial);
  }
  write_durably(prepared_path(), json_report(record));
}

void LiveUpdate::name_record() const {
  const std::string path = commit_path(directory_, update_);
  const std::string beside = prepared_path();
  // The name is the decision. An engine that takes this job step for dead gives it to a void record.
  std::error_code ignored;
  std::error_code error;
  std::filesystem::create_hard_link(beside, path, error);
  // A server of files that answers a second time says that the name is there, though it is this one's.
  if (error && std::filesystem::equivalent(beside, path, ignored)) error.clear();
  std::filesystem::remove(beside, ignored);
  if (error) {
    throw IoError(
        fmt::format("{}: the version cannot be committed, look at the folder: {}", path, error.message()));
  }
  try {
    sync_directory(directory_);
  } catch (const IoError& unsynced) {
    log_note(unsynced.what());
  }
}

std::string LiveUpdate::unknown_to_this_rank(std::int64_t version) const {
  return fmt::format("whether version {} is committed its record says: weightcast inspect live:{}", version,
                     directory_);
}

void LiveUpdate::remove_earlier_records() const noexcept {
  try {
    for (const std::uint64_t update : updates_recorded(directory_)) {
      std::error_code ignored;
      if (update < update_) std::filesystem::remove(commit_path(directory_, update), ignored);
    }
    // This job step has all engines: whoever has left these is dead.
    for (const std::string& path : unnamed_records(directory_)) {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    }
  } catch (const std::exception&) {
    // They stay, and stand for no other update.
  }
}

void LiveUpdate::commit(std::int64_t version) {
  // From here on a signal must not make it look otherwise than it is.
  const Deadline::DeferSignals defer(control_.deadline);
  const bool names_record = control_.rank() == 0 && !directory_.empty();
  const std::string committed = fmt::format("version {} is committed", version);
  try {
    // Once a rank has said that its engine is written, the first one alone knows whether the record has its
    // name.
    if (!directory_.empty() && !names_record) control_.deadline.put_in_place(unknown_to_this_rank(version));
    control_.agreement.together([&] {
      if (engine_ == nullptr) return;
      engine_->require_whole();
      if (require_in_place_) require_in_place_();
      if (engine_->change(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN)) return;
      throw IoError(engine_->manifest().path + ": " + engine_->name() +
                    " is in another state than this update left it in; run the update again");
    });
    // The decision: from here on the version is every engine's, whoever dies.
    control_.agreement.together([&] {
      if (!names_record) return;
      control_.deadline.put_in_place(unknown_to_this_rank(version));
      name_record();
      control_.deadline.put_in_place(committed);
    });
  } catch (const AgreedFailure& failure) {
    fail(failure.what(), true);
    throw;
  }
  // Where no engine is live, nothing is in place yet: files are still to be written.
  if (!directory_.empty()) control_.deadline.begin_phase("after the update to version", version, committed);
  if (engine_ != nullptr) {
    engine_->change(WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED);
    if (!engine_->lives()) {
      log_note(fmt::format("{}: {} has died during the update; version {} is that of all others",
                           engine_->manifest().path, engine_->name(), version));
    }
  }
  if (trainer_ != nullptr) trainer_->change(WEIGHTCAST_BEING_READ, WEIGHTCAST_READ);
  asked_ = reading_ = false;
  // Nobody needs an earlier record once every engine has heard of this one.
  control_.agreement.together([] {});
  if (control_.rank() == 0 && !directory_.empty()) remove_earlier_records();
  give_back();
}

void LiveUpdate::fail(const std::string& reason, bool written) noexcept {
  // What this update has not done is not undone: another job's states are not touched.
  try {
    if (asked_) {
      if (!is_at_rest(engine_->state())) engine_->give_reason(reason);
      // Whatever the engine answers meanwhile: what was not written is as it was.
      if (!engine_->change(WEIGHTCAST_ASKED, rest_)) engine_->change(WEIGHTCAST_PAUSED, rest_);
      if (!written) engine_->change(WEIGHTCAST_WRITING, rest_);
      engine_->invalidate(WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN_SOME, reason);
      engine_->invalidate(WEIGHTCAST_WRITTEN, WEIGHTCAST_WRITTEN_ALL, reason);
    }
    if (control_.rank() == 0 && !directory_.empty() && update_ != 0) {
      std::error_code ignored;
      std::filesystem::remove(prepared_path(), ignored);
    }
    if (reading_) {
      trainer_->give_reason(reason);
      trainer_->change(WEIGHTCAST_BEING_READ, WEIGHTCAST_OFFERS);
    }
  } catch (const std::exception&) {
    // No memory for a text. The locks that go now let the exporters find out by themselves.
  }
  asked_ = reading_ = false;
  give_back();
}

}  // namespace weightcast
