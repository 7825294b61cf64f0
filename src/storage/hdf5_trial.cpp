#include "storage/hdf5_trial.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <exception>
#include <fstream>
#include <new>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// What a program does not survive.
constexpr std::array<int, 8> kCrashes{SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGSYS, SIGXCPU, SIGKILL};

/// Far more than unpacking takes.
rlim_t most_seconds(std::int64_t bytes) {
  constexpr std::int64_t kLeast = 60;
  constexpr std::int64_t kBytesASecond = 10'000'000;
  constexpr std::int64_t kMost = 3600;  // where nobody says how many bytes there may be
  return static_cast<rlim_t>(std::min(kMost, kLeast + bytes / kBytesASecond));
}

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

/// Far more than what headers say takes, and chunks that are unpacked to see how long they are.
std::int64_t most_memory(std::int64_t bytes) {
  constexpr std::int64_t kForAByte = 16;
  constexpr std::int64_t kMost = std::int64_t{1} << 60;  // where nobody says how many bytes there may be
  return kGiB + kForAByte * std::min(bytes, kMost / kForAByte);
}

/// Lets this process map so much more than it has. False where it may do less already.
bool limit_memory(std::int64_t more) {
  rlimit space{};
  std::int64_t pages = 0;  // that are mapped
  if (::getrlimit(RLIMIT_AS, &space) != 0 || !(std::ifstream("/proc/self/statm") >> pages)) return false;
  const auto limit = static_cast<rlim_t>(pages * ::sysconf(_SC_PAGESIZE) + more);
  if (space.rlim_cur <= limit) return false;
  space.rlim_cur = limit;
  return ::setrlimit(RLIMIT_AS, &space) == 0;
}

/// How a child ends that had not memory enough.
constexpr int kOutOfMemory = 1;

/// Ends with 0 unless `read` ends it, or takes that long or that much memory.
[[noreturn]] void try_in_child(pid_t parent, rlim_t seconds, std::int64_t memory,
                               const std::function<void()>& read) {
  // Not longer than the parent, which may have ended already.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(0);
  // No words of the library's, of the allocator or of the launcher's handlers, and no core file.
  const int nowhere = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::dup2(nowhere, STDOUT_FILENO);
  ::dup2(nowhere, STDERR_FILENO);
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  rlimit time{};
  ::getrlimit(RLIMIT_CPU, &time);
  time.rlim_max = std::min(time.rlim_max, seconds + 1);
  time.rlim_cur = std::min(time.rlim_max, seconds);
  ::setrlimit(RLIMIT_CPU, &time);
  for (const int crash : kCrashes) std::signal(crash, SIG_DFL);
  const bool limited = limit_memory(memory);
  try {
    read();
  } catch (const std::bad_alloc&) {
    if (limited) ::_exit(kOutOfMemory);
  } catch (const std::exception&) {
    // The parent meets it, too.
  }
  ::_exit(0);
}

}  // namespace

void require_survivable(const std::string& path, std::int64_t bytes, const std::function<void()>& read) {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) try_in_child(parent, most_seconds(bytes), most_memory(bytes), read);
  if (child < 0) return;
  int status = 0;
  pid_t ended = 0;
  do {
    ended = ::waitpid(child, &status, 0);
  } while (ended < 0 && errno == EINTR);
  if (ended != child) return;
  const auto refuse = [&](const std::string& what) {
    throw InputError(
        fmt::format("{}: the HDF5 library {} what the file says; it is damaged, or made to do that: copy it "
                    "again, or write the weights anew",
                    path, what));
  };
  if (WIFEXITED(status) && WEXITSTATUS(status) == kOutOfMemory) {
    refuse(fmt::format("needs more than {} GiB of memory for", most_memory(bytes) / kGiB));
  }
  if (!WIFSIGNALED(status) || std::ranges::find(kCrashes, WTERMSIG(status)) == kCrashes.end()) return;
  const bool endless = WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGKILL;
  refuse(endless ? "comes to no end with" : "does not survive");
}

}  // namespace weightcast
