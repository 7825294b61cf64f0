#include "control/last_words.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <sstream>
#include <string_view>
#include <thread>
#include <vector>

#include "control/farewell.hpp"
#include "control/signals.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// How long a failing rank waits for rank 0 to print its line.
constexpr auto kReportGrace = 1s;
// How long it takes at most to hear that another has spoken.
constexpr auto kHearing = 50ms;
// How long rank 0 waits for a reason why a launcher ends the job.
constexpr auto kOtherHostGrace = 300ms;
constexpr int kFailureTag = 2;
constexpr int kSpokenTag = 3;
// Ranks wait so much longer each, up to that many of them, so that they do not speak at once.
constexpr auto kTurn = 250ms;
constexpr int kMostTurns = 100;
constexpr auto kReportLimit = 60s;
// How long the word that a rank has spoken may take to leave it: well below that.
constexpr auto kWordGrace = 100ms;
// How long the report of a failure may take to be written.
constexpr auto kHookGrace = 5s;

bool names_its_culprit(ExitCode code) {
  return code == ExitCode::kUsage || code == ExitCode::kBadInput;
}

}  // namespace

LastWords::LastWords(const ThisRank& self, const Neighbours& neighbours, Watchdog& watchdog)
    : self_(self),
      neighbours_(neighbours),
      watchdog_(watchdog),
      comm_(Communicator::duplicate(self.comm.get())) {}

void LastWords::abort_all(const Error& cause) {
  end_by_oneself();
  const Error error = error_of(cause);
  watchdog_.watch_rank(self_.rank, "reporting a failure", kReportLimit);
  const Failure mine{error.code(), line_of(error)};
  if (self_.rank == 0) {
    report_and_abort(better_reason_than(mine).value_or(mine));
  }
  // Rank 0 alone prints, so that ranks failing together still give one line.
  send_failure(mine);
  abort_now(mine.code, mine.line);
}

std::optional<LastWords::Failure> LastWords::better_reason_than(const Failure& mine) {
  // When this rank was the one that hung, another has spoken for it in the meantime. When a rank of another
  // host has died, those of that host see it, and this one only gets the launcher's signal.
  const auto give_up =
      Clock::now() + (mine.code == ExitCode::kStopped && !neighbours_.are_all() ? kOtherHostGrace : 0ms);
  for (;;) {
    if (auto failure = receive_failure()) return failure;
    if (Clock::now() >= give_up) return std::nullopt;
    std::this_thread::sleep_for(1ms);
  }
}

void LastWords::hear() {
  if (self_.rank != 0) return;
  if (const auto failure = receive_failure()) report_and_abort(*failure);
}

bool LastWords::another_has_spoken() const {
  if (neighbours_.have_spoken()) return true;
  int there = 0;
  MPI_Iprobe(MPI_ANY_SOURCE, kSpokenTag, comm_.get(), &there, MPI_STATUS_IGNORE);
  return there != 0;
}

std::string LastWords::line_of(const Error& error) const {
  std::string line = error.what();
  if (names_its_culprit(error.code())) return line;
  return fmt::format("rank {} ({}): {}", self_.rank, self_.host, line);
}

void LastWords::report_and_abort(const Failure& failure) {
  end_by_oneself();
  bool spoken = false;
  // A rank that speaks for itself says so first; its word may still be on the way.
  constexpr int kProbes = 20;
  for (int probe = 0; probe < kProbes && !spoken; ++probe) {
    spoken = another_has_spoken();
    std::this_thread::sleep_for(1ms);
  }
  if (!spoken) speak_for_all(failure.line);
  abort_now(failure.code, failure.line);
}

void LastWords::speak_for_all(const std::string& line) const {
  if (!neighbours_.take_the_word()) return;
  static constexpr char kWord = 0;
  std::vector<MPI_Request> requests;
  for (int rank = 0; rank < self_.size; ++rank) {
    if (rank == self_.rank) continue;
    MPI_Isend(&kWord, 1, MPI_CHAR, rank, kSpokenTag, comm_.get(), &requests.emplace_back());
  }
  // A word may need a connection that has yet to be made; a rank that hangs must not hold up the line.
  const auto give_up = Clock::now() + kWordGrace;
  for (int done = 0; done == 0 && Clock::now() < give_up;) {
    MPI_Testall(mpi_count(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
  }
  log_error(line);
}

std::optional<LastWords::Failure> LastWords::receive_failure() {
  int there = 0;
  MPI_Status status;
  WEIGHTCAST_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kFailureTag, comm_.get(), &there, &status));
  if (there == 0) return std::nullopt;
  int count = 0;
  WEIGHTCAST_MPI(MPI_Get_count(&status, MPI_CHAR, &count));
  std::string text(static_cast<std::size_t>(count), ' ');
  WEIGHTCAST_MPI(
      MPI_Recv(text.data(), count, MPI_CHAR, status.MPI_SOURCE, kFailureTag, comm_.get(), MPI_STATUS_IGNORE));
  // "code line", as send_failure writes it.
  std::istringstream words(text);
  int code = 0;
  words >> code;
  words.ignore();
  Failure failure{static_cast<ExitCode>(code), ""};
  std::getline(words, failure.line);
  return failure;
}

void LastWords::send_failure(const Failure& failure) {
  const std::string text = fmt::format("{} {}", static_cast<int>(failure.code), failure.line);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Isend(text.data(), mpi_count(text.size()), MPI_CHAR, 0, kFailureTag, comm_.get(), &request);
  // The launcher may end this rank at any moment now.
  clean_up();
  // Should rank 0 itself hang, another rank speaks: the lowest, because it waits the shortest. Where it has
  // died, at once: the launcher ends them all within a second.
  const auto give_up = neighbours_.dead() == 0
                           ? Clock::now() + kHearing + neighbours_.alive_below() * kTurn
                           : Clock::now() + kReportGrace + std::min(self_.rank - 1, kMostTurns) * kTurn;
  const bool told_before = hard_stop_signal() != 0;
  bool spoken = false;
  while (Clock::now() < give_up) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    // The launcher is ending the job: somebody has spoken. A rank that was told to stop before cannot know
    // whose signal it was; it hears the word of the one who spoke.
    spoken = spoken || another_has_spoken();
    if (!told_before && hard_stop_signal() != 0) leave(failure.code);
    std::this_thread::sleep_for(1ms);
  }
  if (!spoken) speak_for_all(failure.line);
}

void LastWords::abort_now(ExitCode code, const std::string& line) const {
  if (self_.rank == 0 && abort_hook_) {
    // Copies, because it may go on when the grace is over.
    within(kHookGrace, [hook = abort_hook_, code, line] { hook(code, line); });
  }
  clean_up();
  std::fflush(nullptr);
  MPI_Abort(self_.comm.get(), static_cast<int>(code));
  _exit(static_cast<int>(code));
}

}  // namespace weightcast
