// To be preloaded into a job: stands before rename (of either kind), link and unlink and lets one call of one
// rank fail, or do something else first. Which one, in the environment:
//   FAIL_RANK    the rank
//   FAIL_CALL    rename, link or unlink
//   FAIL_PATH    only calls on paths that contain this count
//   FAIL_NUMBER  number of the call among those, from 0
//   FAIL_ERRNO   what it fails with
//   FAIL_ALSO_RANK, FAIL_ALSO_NUMBER  the same for a second rank
//   FAIL_SIGNAL  a signal that the process gets instead, before the call is done

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string_view>

namespace {

long variable(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtol(text, nullptr, 10);
}

bool is_variable(const char* name, std::string_view value) {
  const char* text = std::getenv(name);
  return text != nullptr && value == text;
}

bool fails(const char* call, std::string_view path) {
  static const long rank = variable("OMPI_COMM_WORLD_RANK", -1);
  static const bool also = rank == variable("FAIL_ALSO_RANK", -2);
  static const bool here = also || rank == variable("FAIL_RANK", -2);
  static const long number = variable(also ? "FAIL_ALSO_NUMBER" : "FAIL_NUMBER", 0);
  static std::atomic<long> counted = 0;
  const char* part = std::getenv("FAIL_PATH");
  if (!here || !is_variable("FAIL_CALL", call) || part == nullptr ||
      path.find(part) == std::string_view::npos || counted++ != number) {
    return false;
  }
  const auto signal = static_cast<int>(variable("FAIL_SIGNAL", 0));
  if (signal != 0) std::raise(signal);
  errno = static_cast<int>(variable("FAIL_ERRNO", EIO));
  return signal == 0;
}

}  // namespace

extern "C" int rename(const char* from, const char* to) noexcept {
  if (fails("rename", to)) return -1;
  return static_cast<int>(::syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to));
}
extern "C" int renameat2(int, const char* from, int, const char* to, unsigned flags) noexcept {
  if (fails("rename", to)) return -1;
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags));
}
extern "C" int link(const char* from, const char* to) noexcept {
  if (fails("link", from)) return -1;
  return static_cast<int>(::syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}
extern "C" int unlink(const char* path) noexcept {
  if (fails("unlink", path)) return -1;
  return static_cast<int>(::syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}
