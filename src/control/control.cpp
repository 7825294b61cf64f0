#include "control/control.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <sstream>
#include <thread>

#include "control/farewell.hpp"
#include "control/signals.hpp"
#include "core/text.hpp"
#include "report/log.hpp"
#include "sys/backoff.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;

// How long after the deadline a rank that does not even poll is ended.
constexpr auto kWatchdogGrace = 15s;
// The next rank is ended so much later, up to so many times: when the first has cleaned up and the launcher
// has ended all.
constexpr auto kWatchdogStagger = 5s;
constexpr int kMostWatchdogStaggers = 6;
// How long a failing rank waits for rank 0 to print its line.
constexpr auto kReportGrace = 5s;
constexpr int kFailureTag = 2;
constexpr int kSpokenTag = 3;
// Ranks wait one second longer each, up to this many, so that they do not speak at once.
constexpr int kMostStagger = 30;
constexpr auto kReportLimit = 60s;
// How long the word that a rank has spoken may take to leave it: well below that second.
constexpr auto kWordGrace = 100ms;
// How long the report of a failure may take to be written.
constexpr auto kHookGrace = 5s;
// The longest line that a failing rank reports: names in it may be as long as a file likes.
constexpr std::size_t kLongestLine = 64 << 10;

bool names_its_culprit(ExitCode code) {
  return code == ExitCode::kUsage || code == ExitCode::kBadInput;
}

}  // namespace

Control::Control(MPI_Comm world, std::chrono::seconds timeout, Watchdog& watchdog, std::size_t piece)
    : comm_(Communicator::duplicate(world)),
      failures_(Communicator::duplicate(world)),
      rank_(comm_.rank()),
      size_(comm_.size()),
      host_(this_host()),
      timeout_(timeout),
      watchdog_(watchdog),
      piece_(piece) {
  begin_phase("start");
}

Control::~Control() = default;

void Control::begin_phase(const char* name, std::optional<std::int64_t> number, std::string_view in_place) {
  phase_name_ = name;
  phase_number_ = number;
  in_place_ = in_place;
  deadline_ = Clock::now() + timeout_;
  watch(name, timeout_ + kWatchdogGrace);
}

void Control::watch(const char* name, std::chrono::seconds limit) {
  // The lowest rank that hangs speaks first, and its end is the others'. Should it not be, those behind the
  // first few end together, and a line of each would hide what the first ones have said.
  watchdog_.watch(name, limit + std::min(rank_, kMostWatchdogStaggers) * kWatchdogStagger,
                  rank_ < kMostWatchdogStaggers);
}

std::string Control::phase() const {
  return phase_number_ ? fmt::format("{} {}", phase_name_, *phase_number_) : phase_name_;
}

std::string_view Control::left() const {
  constexpr std::string_view kNothingNew = "the previous version is untouched";
  return in_place_.empty() ? kNothingNew : std::string_view(in_place_);
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
  } catch (const std::exception& exception) {
    const Error error = in_phase(exception);
    mine = {rank_, static_cast<int>(error.code())};
    line = format_error(error);
  }
  std::array<int, 2> first{};
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallreduce(mine.data(), first.data(), 1, MPI_2INT, MPI_MINLOC, comm(), &request));
  wait(request);
  if (first[0] == size_) return;
  // Printed when all have it: a broadcast that fails ends the job with a line of its own.
  line = broadcast(line, first[0]);
  if (first[0] == rank_) log_error(line);
  throw AgreedFailure(static_cast<ExitCode>(first[1]), line);
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
    throw StoppedError(fmt::format("{}: stopped by {}; {}", phase(), signal_name(signal), left()));
  }
  if (signals_deferred_ && hard_stop_signal() != 0 && another_has_spoken()) {
    // The job has ended, and the signal is the launcher's. What ended it belongs into rank 0's report.
    if (const auto failure = receive_failure()) report_and_abort(*failure);
    leave(ExitCode::kStopped);
  }
  if (Clock::now() > deadline_) {
    throw TimeoutError(
        fmt::format("{}: not done after {} s; {}; raise --timeout or look for the rank that hangs", phase(),
                    timeout_.count(), left()));
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
    MPI_Testall(mpi_count(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
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
  MPI_Isend(text.data(), mpi_count(text.size()), MPI_CHAR, 0, kFailureTag, failures_.get(), &request);
  // The launcher may end this rank at any moment now.
  clean_up();
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
    if (!stopped && hard_stop_signal() != 0) leave(failure.code);
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

template <typename Start>
void Control::in_pieces(std::size_t total, Start start) {
  for (std::size_t offset = 0; offset < total; offset += piece_) {
    MPI_Request request = MPI_REQUEST_NULL;
    WEIGHTCAST_MPI(start(offset, mpi_count(std::min(piece_, total - offset)), &request));
    wait(request);
  }
}

template <typename Value>
void Control::reduce(std::span<Value> values, MPI_Datatype type, MPI_Op operation) {
  in_pieces(values.size(), [&](std::size_t offset, int count, MPI_Request* request) {
    return MPI_Iallreduce(MPI_IN_PLACE, values.data() + offset, count, type, operation, comm(), request);
  });
}

void Control::sum(std::span<std::uint64_t> values) {
  reduce(values, MPI_UINT64_T, MPI_SUM);
}

void Control::maximum(std::span<double> values) {
  reduce(values, MPI_DOUBLE, MPI_MAX);
}

void Control::maximum(std::span<std::int64_t> values) {
  reduce(values, MPI_INT64_T, MPI_MAX);
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
  in_pieces(bytes.size(), [&](std::size_t offset, int count, MPI_Request* piece) {
    return MPI_Ibcast(bytes.data() + offset, count, MPI_BYTE, root, comm(), piece);
  });
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
  const std::uint64_t size = text.size();
  std::vector<std::uint64_t> sizes(ranks, 0);
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Iallgather(&size, 1, MPI_UINT64_T, sizes.data(), 1, MPI_UINT64_T, comm(), &request));
  wait(request);
  // One message of each rank and round; all of a round together are one piece.
  const std::size_t share = piece_ / ranks;
  const std::uint64_t longest = *std::max_element(sizes.begin(), sizes.end());
  std::vector<std::string> texts(rank_ == 0 ? ranks : 0);
  for (std::size_t offset = 0; offset < longest; offset += share) {
    const auto in_round = [&](std::size_t bytes) {
      return mpi_count(std::min(share, bytes - std::min(bytes, offset)));
    };
    std::vector<int> counts(ranks, 0);
    std::vector<int> starts(ranks, 0);
    std::transform(sizes.begin(), sizes.end(), counts.begin(), in_round);
    std::exclusive_scan(counts.begin(), counts.end(), starts.begin(), 0);
    std::string all(rank_ == 0 ? static_cast<std::size_t>(starts.back() + counts.back()) : 0, ' ');
    const char* const mine = text.data() + std::min(offset, text.size());
    WEIGHTCAST_MPI(MPI_Igatherv(mine, in_round(text.size()), MPI_CHAR, all.data(), counts.data(),
                                starts.data(), MPI_CHAR, 0, comm(), &request));
    wait(request);
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
      texts[rank].append(all, static_cast<std::size_t>(starts[rank]), static_cast<std::size_t>(counts[rank]));
    }
  }
  return texts;
}

void Control::abort_all(const Error& cause) {
  const Error error = error_of(cause);
  watch("reporting a failure", kReportLimit);
  const Failure mine{error.code(), format_error(error)};
  if (rank_ == 0) {
    // When this rank was the one that hung, another has spoken for it in the meantime.
    report_and_abort(receive_failure().value_or(mine));
  }
  // Rank 0 alone prints, so that ranks failing together still give one line.
  send_failure(mine);
  abort_now(mine.code, mine.line);
}

Error Control::in_phase(const std::exception& exception) const {
  Error error = error_of(exception);
  // What libraries throw does not say what was being done.
  if (dynamic_cast<const Error*>(&exception) != nullptr) return error;
  return {error.code(), fmt::format("{}: {}", phase(), error.what()), error.where()};
}

std::string Control::format_error(const Error& error) const {
  std::string line = printable(std::string_view(error.what()).substr(0, kLongestLine));
  if (names_its_culprit(error.code())) return line;
  return fmt::format("rank {} ({}): {}", rank_, host_, line);
}

void Control::abort_now(ExitCode code, const std::string& line) const {
  if (rank_ == 0 && abort_hook_) {
    // Copies, because it may go on when the grace is over.
    within(kHookGrace, [hook = abort_hook_, code, line] { hook(code, line); });
  }
  clean_up();
  std::fflush(nullptr);
  MPI_Abort(comm(), static_cast<int>(code));
  _exit(static_cast<int>(code));
}

}  // namespace weightcast
