#include "session/control.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <sstream>
#include <thread>

#include "report/log.hpp"
#include "session/signals.hpp"
#include "storage/writer.hpp"
#include "sys/backoff.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

// How long after the deadline a rank that does not even poll is ended.
constexpr auto kWatchdogGrace = 15s;
// How long a failing rank waits for rank 0 to print its line.
constexpr auto kReportGrace = 5s;
constexpr int kFailureTag = 2;
constexpr int kSpokenTag = 3;
// Ranks wait one second longer each, up to this many, so that they do not speak at once.
constexpr int kMostStagger = 30;
constexpr auto kReportLimit = 60s;
// How long the word that a rank has spoken may take to leave it: well below that second.
constexpr auto kWordGrace = 100ms;

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown host";
}

bool names_its_culprit(ExitCode code) {
  return code == ExitCode::kUsage || code == ExitCode::kBadInput;
}

}  // namespace

Control::Control(MPI_Comm world, std::chrono::seconds timeout, Watchdog& watchdog)
    : comm_(Communicator::duplicate(world)),
      failures_(Communicator::duplicate(world)),
      rank_(comm_.rank()),
      size_(comm_.size()),
      host_(host_name()),
      timeout_(timeout),
      watchdog_(watchdog) {
  begin_phase("start");
}

Control::~Control() = default;

void Control::begin_phase(const char* name, std::optional<std::int64_t> number, std::string left) {
  phase_name_ = name;
  phase_number_ = number;
  phase_left_ = std::move(left);
  deadline_ = Clock::now() + timeout_;
  // The lowest rank that hangs speaks first, and its end is the others'.
  watchdog_.watch(name, timeout_ + kWatchdogGrace + std::min(rank_, kMostStagger) * 1s);
}

std::string Control::phase() const {
  return phase_number_ ? fmt::format("{} {}", phase_name_, *phase_number_) : phase_name_;
}

void Control::require_same(std::uint64_t hash, const Error& otherwise) {
  // Equal on all ranks when the greatest is also the least: the maximum of the hash and of its complement.
  std::array<std::int64_t, 2> extremes{static_cast<std::int64_t>(hash), ~static_cast<std::int64_t>(hash)};
  maximum(std::span<std::int64_t>(extremes));
  together([&] {
    if (extremes[0] != ~extremes[1]) throw Error(otherwise);
  });
}

void Control::together(const std::function<void()>& local) {
  std::array<int, 2> mine{size_, 0};  // lowest failing rank, its code
  std::string line;
  try {
    local();
  } catch (const Error& error) {
    mine = {rank_, static_cast<int>(error.code())};
    line = format_error(error);
  } catch (const std::bad_alloc&) {
    const IoError error(phase() + ": out of host memory; use fewer ranks a node or smaller --bucket-size");
    mine = {rank_, static_cast<int>(error.code())};
    line = format_error(error);
  }
  std::array<int, 2> first{};
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(mine.data(), first.data(), 1, MPI_2INT, MPI_MINLOC, comm(), &request));
  wait(request);
  if (first[0] == size_) return;
  if (first[0] == rank_) log_error(line);
  throw AgreedFailure(static_cast<ExitCode>(first[1]), broadcast(line, first[0]));
}

void Control::poll() {
  // Looking for messages costs a trip through MPI's progress engine; the callers poll very often. Others'
  // failures come before this rank's own: one that slept through its deadline must not speak after others
  // have.
  constexpr int kPollsBetweenProbes = 16;
  if (rank_ == 0 && ++polls_ % kPollsBetweenProbes == 0) {
    if (const auto failure = receive_failure()) report_and_abort(*failure);
  }
  if (const int signal = hard_stop_signal(); signal != 0 && !signals_deferred_) {
    throw StoppedError(fmt::format("{}: stopped by {}; {}", phase(), signal_name(signal), phase_left_));
  }
  if (signals_deferred_ && hard_stop_signal() != 0 && another_has_spoken()) {
    // The job has ended, and the signal is the launcher's.
    remove_partial_files();
    _exit(static_cast<int>(ExitCode::kStopped));
  }
  if (Clock::now() > deadline_) {
    throw TimeoutError(fmt::format("{}: not done after {} s; raise --timeout or look for the rank that hangs",
                                   phase(), timeout_.count()));
  }
}

void Control::report_and_abort(const Failure& failure) {
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

bool Control::another_has_spoken() const {
  int there = 0;
  MPI_Iprobe(MPI_ANY_SOURCE, kSpokenTag, failures_.get(), &there, MPI_STATUS_IGNORE);
  return there != 0;
}

void Control::speak_for_all(const std::string& line) const {
  static constexpr char kWord = 0;
  std::vector<MPI_Request> requests;
  for (int rank = 0; rank < size_; ++rank) {
    if (rank == rank_) continue;
    MPI_Isend(&kWord, 1, MPI_CHAR, rank, kSpokenTag, failures_.get(), &requests.emplace_back());
  }
  // A word may need a connection that has yet to be made; a rank that hangs must not hold up the line.
  const auto give_up = Clock::now() + kWordGrace;
  for (int done = 0; done == 0 && Clock::now() < give_up;) {
    MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
  }
  log_error(line);
}

std::optional<Control::Failure> Control::receive_failure() {
  int there = 0;
  MPI_Status status;
  WEIGHTCAST_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kFailureTag, failures_.get(), &there, &status));
  if (there == 0) return std::nullopt;
  int count = 0;
  WEIGHTCAST_MPI(MPI_Get_count(&status, MPI_CHAR, &count));
  std::string text(static_cast<std::size_t>(count), ' ');
  WEIGHTCAST_MPI(MPI_Recv(text.data(), count, MPI_CHAR, status.MPI_SOURCE, kFailureTag, failures_.get(),
                          MPI_STATUS_IGNORE));
  // "code line", as send_failure writes it.
  std::istringstream words(text);
  int code = 0;
  words >> code;
  words.ignore();
  Failure failure{static_cast<ExitCode>(code), ""};
  std::getline(words, failure.line);
  return failure;
}

void Control::send_failure(const Failure& failure) {
  const std::string text = fmt::format("{} {}", static_cast<int>(failure.code), failure.line);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Isend(text.data(), static_cast<int>(text.size()), MPI_CHAR, 0, kFailureTag, failures_.get(), &request);
  // The launcher may end this rank at any moment now.
  remove_partial_files();
  // Should rank 0 itself hang, another rank speaks: the lowest, because it waits the shortest.
  const auto give_up = Clock::now() + kReportGrace + std::min(rank_ - 1, kMostStagger) * 1s;
  const bool stopped = failure.code == ExitCode::kStopped;
  bool spoken = false;
  while (Clock::now() < give_up) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    // The launcher is ending the job: somebody has spoken. A rank that was told to stop cannot know whose
    // signal it was; it hears the word of the one who spoke.
    spoken = spoken || another_has_spoken();
    if (!stopped && hard_stop_signal() != 0) _exit(static_cast<int>(failure.code));
    std::this_thread::sleep_for(1ms);
  }
  if (!spoken) speak_for_all(failure.line);
}

void Control::wait(MPI_Request& request) {
  Backoff backoff;
  try {
    for (;;) {
      int done = 0;
      WEIGHTCAST_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
      if (done != 0) return;
      poll();
      backoff.pause();
    }
  } catch (const Error& error) {
    abort_all(error);
  }
}

void Control::sum(std::span<std::uint64_t> values) {
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_UINT64_T,
                                MPI_SUM, comm(), &request));
  wait(request);
}

void Control::maximum(std::span<double> values) {
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_DOUBLE,
                                MPI_MAX, comm(), &request));
  wait(request);
}

void Control::maximum(std::span<std::int64_t> values) {
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_INT64_T,
                                MPI_MAX, comm(), &request));
  wait(request);
}

std::vector<std::byte> Control::broadcast(std::vector<std::byte> bytes) {
  return broadcast_from(0, std::move(bytes));
}

std::vector<std::byte> Control::broadcast_from(int root, std::vector<std::byte> bytes) {
  auto size = static_cast<std::int64_t>(bytes.size());
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Ibcast(&size, 1, MPI_INT64_T, root, comm(), &request));
  wait(request);
  bytes.resize(static_cast<std::size_t>(size));
  // Headers of the largest checkpoints are a few tens of megabytes: one message.
  WEIGHTCAST_MPI(MPI_Ibcast(bytes.data(), static_cast<int>(size), MPI_BYTE, root, comm(), &request));
  wait(request);
  return bytes;
}

std::string Control::broadcast(const std::string& text, int root) {
  const auto* first = reinterpret_cast<const std::byte*>(text.data());
  const std::vector<std::byte> bytes =
      broadcast_from(root, std::vector<std::byte>(first, first + text.size()));
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::string> Control::gather(const std::string& text) {
  const auto ranks = static_cast<std::size_t>(size_);
  const int size = static_cast<int>(text.size());
  std::vector<int> sizes(ranks, 0);
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Igather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, 0, comm(), &request));
  wait(request);
  std::vector<int> starts(ranks, 0);
  std::partial_sum(sizes.begin(), sizes.end() - 1, starts.begin() + 1);
  std::string all(static_cast<std::size_t>(starts.back() + sizes.back()), ' ');
  WEIGHTCAST_MPI(MPI_Igatherv(text.data(), size, MPI_CHAR, all.data(), sizes.data(), starts.data(), MPI_CHAR,
                              0, comm(), &request));
  wait(request);
  std::vector<std::string> texts;
  if (rank_ != 0) return texts;
  for (std::size_t i = 0; i < ranks; ++i) {
    texts.push_back(all.substr(static_cast<std::size_t>(starts[i]), static_cast<std::size_t>(sizes[i])));
  }
  return texts;
}

void Control::abort_all(const Error& error) {
  watchdog_.watch("reporting a failure", kReportLimit);
  const Failure mine{error.code(), format_error(error)};
  if (rank_ == 0) {
    // When this rank was the one that hung, another has spoken for it in the meantime.
    report_and_abort(receive_failure().value_or(mine));
  }
  // Rank 0 alone prints, so that ranks failing together still give one line.
  send_failure(mine);
  abort_now(mine.code, mine.line);
}

std::string Control::format_error(const Error& error) const {
  if (names_its_culprit(error.code())) return error.what();
  return fmt::format("rank {} ({}): {}", rank_, host_, error.what());
}

void Control::abort_now(ExitCode code, const std::string& line) const {
  if (rank_ == 0 && abort_hook_) abort_hook_(code, line);
  remove_partial_files();
  std::fflush(nullptr);
  MPI_Abort(comm(), static_cast<int>(code));
  _exit(static_cast<int>(code));
}

}  // namespace weightcast
