#include "faults/campaign.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <utility>

#include "support/process.hpp"

namespace weightcast::faults {

using namespace test_support;

namespace {

// How much later than its deadline a job may end; a launcher takes a second more for a rank that is stopped.
constexpr int kGrace = 2;
constexpr int kLauncherGrace = 1;
// What a job that hangs is given before it is killed, so that it can still end late.
constexpr std::chrono::seconds kMost{60};
constexpr int kSignalled = 128;

std::int64_t now() {
  timespec time = {};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  constexpr std::int64_t kSecond = 1'000'000'000;
  return time.tv_sec * kSecond + time.tv_nsec;
}

bool is_message(Call call) {
  return call >= Call::kBucket;
}

/// Which deeds a call can meet, and with what value.
struct Choice {
  Deed deed;
  std::int64_t value = 0;
  bool of_source = false;
};

std::vector<Choice> choices_of(Call call) {
  constexpr std::int64_t kLate = 300;  // ms
  std::vector<Choice> choices{{Deed::kKill}, {Deed::kStop}, {Deed::kTerm}, {Deed::kSlow, kLate}};
  const auto add = [&](std::initializer_list<Choice> more) { choices.insert(choices.end(), more); };
  switch (call) {
    case Call::kOpen:
      add({{Deed::kFail, EIO},
           {Deed::kFail, EACCES},
           {Deed::kFail, EMFILE},
           {Deed::kRemove, 0, true},
           {Deed::kReplace, 0, true}});
      break;
    case Call::kRead:
      add({{Deed::kFail, EIO},
           {Deed::kInterrupt},
           {Deed::kShort},
           {Deed::kCut, 0, true},
           {Deed::kChange, 0, true},
           {Deed::kReplace, 0, true},
           {Deed::kRemove, 0, true}});
      break;
    case Call::kWrite:
      add({{Deed::kFail, EIO}, {Deed::kFail, EDQUOT}, {Deed::kFull}, {Deed::kInterrupt}, {Deed::kShort}});
      break;
    case Call::kGrow:
      add({{Deed::kFail, EIO}, {Deed::kFull}});
      break;
    case Call::kMap:
      add({{Deed::kFail, ENOMEM}});
      break;
    case Call::kFlush:
      add({{Deed::kFail, EIO}, {Deed::kFull}});
      break;
    case Call::kRename:
    case Call::kLink:
    case Call::kUnlink:
      add({{Deed::kFail, EIO}, {Deed::kFail, EPERM}});
      break;
    case Call::kAllocate:
      add({{Deed::kFail}, {Deed::kFail}});
      break;
    case Call::kBucket:
      add({{Deed::kFail}, {Deed::kFlip}, {Deed::kDrop}});
      break;
    case Call::kSend:
    case Call::kReceive:
    case Call::kBroadcast:
    case Call::kAgree:
      add({{Deed::kFail}});
      break;
  }
  return choices;
}

/// Deeds that a program has to bear without a word.
bool is_harmless(Deed deed) {
  return deed == Deed::kSlow || deed == Deed::kInterrupt || deed == Deed::kShort;
}

}  // namespace

std::string Fault::kind() const {
  return fmt::format("{}:{}", kDeedNames.at(static_cast<std::size_t>(deed)),
                     kCallNames.at(static_cast<std::size_t>(call)));
}

std::string Fault::words() const {
  std::string text =
      fmt::format("rank {}: {} at its {} {}", rank, kDeedNames.at(static_cast<std::size_t>(deed)),
                  kCallNames.at(static_cast<std::size_t>(call)), number);
  if (value != 0) text += fmt::format(" ({})", value);
  if (of_source) text += " of the source";
  return text;
}

Campaign::Campaign(const Scenario& scenario, int deadline, std::string only)
    : deadline_(deadline), only_(std::move(only)), place_(scenario) {
  all_ = count(place_.folder());
  of_source_ = count(place_.new_source());
  const std::string wrong = place_.put_back();
  if (!wrong.empty()) throw std::runtime_error(wrong);
}

CommandLine Campaign::command(const std::string& path) const {
  std::filesystem::remove_all(record_);
  std::filesystem::create_directory(record_);
  CommandLine command = place_.command(deadline_);
  command.environment["LD_PRELOAD"] = WEIGHTCAST_FAULT;
  command.environment["FAULT_RECORD"] = record_;
  command.environment["FAULT_PATH"] = path;
  if (place_.scenario().ranks == 0) command.environment["FAULT_PLAIN"] = "1";
  command.timeout = kMost;
  return command;
}

std::vector<Campaign::Counts> Campaign::count(const std::string& path) const {
  const Outcome outcome = run(command(path));
  if (outcome.exit_code != 0) throw std::runtime_error("without a fault: " + describe(outcome));
  std::vector<Counts> counts;
  for (int rank = 0; rank < std::max(1, place_.scenario().ranks); ++rank) {
    Record record = {};
    std::ifstream file(fmt::format("{}/rank-{}", record_, rank), std::ios::binary);
    file.read(reinterpret_cast<char*>(&record), sizeof record);
    if (!file) throw std::runtime_error("rank " + std::to_string(rank) + " has counted nothing");
    std::copy(record.counts.begin(), record.counts.end(), counts.emplace_back().begin());
  }
  return counts;
}

Fault Campaign::fault_of(std::uint64_t seed) const {
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t limit) { return random() % limit; };
  constexpr int kMostTries = 100'000;
  for (int tries = 0; tries < kMostTries; ++tries) {
    Fault fault;
    fault.call = static_cast<Call>(below(kCallNames.size()));
    const auto choices = choices_of(fault.call);
    const Choice choice = choices.at(below(choices.size()));
    fault.deed = choice.deed;
    fault.value = choice.value;
    fault.of_source = choice.of_source;
    const auto& counts = fault.of_source ? of_source_ : all_;
    fault.rank = static_cast<int>(below(counts.size()));
    const std::int64_t calls =
        counts.at(static_cast<std::size_t>(fault.rank)).at(static_cast<std::size_t>(fault.call));
    if (calls == 0 || (place_.scenario().ranks == 0 && is_message(fault.call)) ||
        !fault.kind().starts_with(only_))
      continue;
    fault.number = static_cast<std::int64_t>(below(static_cast<std::uint64_t>(calls)));
    return fault;
  }
  throw std::runtime_error(
      fmt::format("{} has no call at which '{}' could happen", place_.scenario().name, only_));
}

std::int64_t Campaign::when_hit(int rank) const {
  Record record = {};
  std::ifstream file(fmt::format("{}/rank-{}", record_, rank), std::ios::binary);
  file.read(reinterpret_cast<char*>(&record), sizeof record);
  return file ? record.hit.load() : 0;
}

Trial Campaign::try_out(std::uint64_t seed) {
  Trial trial;
  trial.seed = seed;
  trial.scenario = place_.scenario().name;
  trial.fault = fault_of(seed);
  const Fault& fault = trial.fault;
  CommandLine job = command(fault.of_source ? place_.new_source() : place_.folder());
  job.environment["FAULT_RANK"] = std::to_string(fault.rank);
  job.environment["FAULT_CALL"] = kCallNames.at(static_cast<std::size_t>(fault.call));
  job.environment["FAULT_NUMBER"] = std::to_string(fault.number);
  job.environment["FAULT_DO"] = kDeedNames.at(static_cast<std::size_t>(fault.deed));
  job.environment["FAULT_VALUE"] = std::to_string(fault.value);
  const Outcome outcome = [&] {
    Process process(job);
    if (place_.scenario().ranks == 0 && fault.deed == Deed::kStop) {
      // Nobody watches a plain command: whoever has stopped it lets it go on.
      while (process.running() && when_hit(fault.rank) == 0) ::usleep(1000);
      ::usleep(200'000);
      process.send(SIGCONT);
    }
    return process.wait();
  }();
  const std::int64_t end = now();
  const std::int64_t hit = when_hit(fault.rank);
  trial.happened = hit != 0;
  constexpr double kNanosecond = 1e-9;
  trial.seconds = trial.happened ? static_cast<double>(end - hit) * kNanosecond : 0;
  trial.code = outcome.signal != 0 ? kSignalled + outcome.signal : outcome.exit_code;
  judge(fault, outcome, trial);
  const std::string wrong = place_.put_back();
  if (!wrong.empty()) trial.broken.push_back(wrong);
  if (!trial.broken.empty()) trial.output = describe(outcome);
  return trial;
}

void Campaign::judge(const Fault& fault, const Outcome& outcome, Trial& trial) const {
  const auto broken = [&](std::string what) { trial.broken.push_back(std::move(what)); };
  const bool plain = place_.scenario().ranks == 0;
  const bool killed = trial.happened && fault.deed == Deed::kKill;
  const auto lines = error_lines(outcome.err);
  if (outcome.timed_out) {
    broken("it hangs");
  } else if (trial.seconds > deadline_ + kGrace + (fault.deed == Deed::kStop ? kLauncherGrace : 0)) {
    broken(fmt::format("it ends {:.1f} s after the fault", trial.seconds));
  }
  const std::vector<int> kCodes{0, 64, 65, 66, 70, 74, 75, 76};
  const bool documented = std::find(kCodes.begin(), kCodes.end(), trial.code) != kCodes.end();
  if (!outcome.timed_out && !documented && !(killed && trial.code == kSignalled + SIGKILL))
    broken(fmt::format("exit code {}", trial.code));
  if (trial.code == 70) broken("an internal error");
  if (trial.code == 0 && trial.happened && killed) broken("a rank was killed and the job succeeded");
  if (trial.code != 0 && (!trial.happened || is_harmless(fault.deed)) &&
      !(plain && fault.deed == Deed::kStop))
    broken("it fails without a reason");
  // Of a plain command nobody is left to speak, unless it was a process that it has started to look at a
  // file.
  const std::size_t expected = trial.code == 0 || (plain && trial.code > kSignalled) ? 0 : 1;
  const std::string report = place_.report_status();
  // When everything is done and MPI ends, the launcher alone says that a rank has died.
  const bool dies_at_the_end = killed && report == "done" && lines.empty();
  if (lines.size() != expected && !dies_at_the_end) broken(fmt::format("{} error lines", lines.size()));
  for (const std::string& line : lines) {
    if (std::any_of(line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }))
      broken("control characters in its line");
  }
  const auto version = place_.version();
  // Between two renames a rank that is killed or ended leaves shards of two versions, which verify refuses: a
  // limit that README names.
  const bool may_be_mixed = fault.call == Call::kRename || fault.call == Call::kLink ||
                            fault.call == Call::kUnlink || killed || fault.deed == Deed::kStop;
  if (!version && !(may_be_mixed && trial.code != 0)) broken("no whole version is there");
  if (trial.code == 0 && version != 1) broken("it succeeded, and its version is not there");
  if (trial.code != 0 && version == 1 && !lines.empty() &&
      lines.front().find("previous version is untouched") != std::string::npos)
    broken("its line says that the previous version is untouched, but the new one is there");
  if (const auto processes = place_.processes(); !processes.empty())
    broken("a process is left: " + processes.front());
  // Amid the renames what the next job makes whole again stays, and the line says so.
  const bool amid_renames =
      !lines.empty() && lines.front().find("until the next job into it") != std::string::npos;
  // A rank that is killed or stopped leaves what it had begun, the first one that writes its claim on the
  // folder, too; others do not.
  const int writer = fault.rank - place_.scenario().trainers;
  const std::string own = fmt::format("out/.rank-{}.", writer);
  for (const std::string& name : place_.litter()) {
    // What cannot be removed stays.
    const bool its_own = name.starts_with(own) || (writer == 0 && name == "out/.weightcast.lock") ||
                         (fault.rank == 0 && name.starts_with(".report.json."));
    const bool excused = fault.call == Call::kUnlink || amid_renames ||
                         ((killed || fault.deed == Deed::kStop) && (plain || its_own));
    if (!excused) broken("it leaves " + name);
  }
  if ((report == "missing" || report == "damaged") && !(fault.rank == 0 && killed))
    broken("its report is " + report);
}

}  // namespace weightcast::faults
