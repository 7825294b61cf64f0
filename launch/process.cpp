#include "launch/process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <new>

#include "control/farewell.hpp"
#include "control/signals.hpp"
#include "core/error.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): the handler of `new` has no arguments
std::atomic<void*> reserve = nullptr;

/// What unwinds when memory has run out needs some itself: destructors of large JSON, the error line,
/// agreement with other ranks.
void keep_reserve() {
  constexpr std::size_t kReserve = std::size_t{16} << 20;
  reserve = std::malloc(kReserve);
  if (reserve == nullptr) throw std::bad_alloc();
  std::set_new_handler([] {
    std::free(reserve.exchange(nullptr));
    throw std::bad_alloc();
  });
}

/// The last word where C++ would end the process without one.
[[noreturn]] void end_with_a_line() noexcept {
  const std::exception_ptr exception = std::current_exception();
  try {
    if (exception) std::rethrow_exception(exception);
    throw InternalError("the program ended itself");
  } catch (const std::exception& last) {
    const Error error = error_of(last);
    log_error(error.what());
    leave(error.code());
  } catch (...) {
    leave(ExitCode::kInternal);
  }
}

/// Keeps descriptors 0 to 2 from the files that the program opens: one that was started with stdin, stdout or
/// stderr closed would else write its log into a checkpoint. A report that nobody can get stays an error.
void occupy_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY);
  }
}

/// Every shard of a conversion stays open until all take their names, and so does the lock of every version.
void allow_open_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// A plain command ends within this time of a signal, also where it is inside a call that does not return.
constexpr std::chrono::seconds kSignalGrace{3};

}  // namespace

void set_left_when_stopped(const char* left) {
  set_last_resort(LastResort{[left](const std::string& end) { return fmt::format("{}; {}", end, left); },
                             true, kSignalGrace});
}

void prepare_process() {
  // A file-size limit shows as an error of write(), which names the file, not as a silent death.
  std::signal(SIGXFSZ, SIG_IGN);
  // So does a pipe whose reader is gone; of stderr it is no error at all.
  std::signal(SIGPIPE, SIG_IGN);
  occupy_standard_streams();
  allow_open_files();
  std::set_terminate(&end_with_a_line);
  keep_reserve();
}

}  // namespace weightcast
