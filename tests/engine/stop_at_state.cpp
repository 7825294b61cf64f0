// To be preloaded into a job step: one rank stops itself, as by SIGSTOP, at moments of an update that are too
// short to be met from outside. Which, in the environment:
//   STOP_RANK  the rank
//   STOP_AT    moments with commas between them: the number of a state that the rank has just given to a
//              control block; `taken`, when it has the lock for an update; `recorded`, when a commit's record
//              has its name

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "client/control_block.h"

namespace {

void stop_at(const std::string& moment) {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const char* stops = std::getenv("STOP_RANK");
  const char* moments = std::getenv("STOP_AT");
  if (rank == nullptr || stops == nullptr || moments == nullptr || std::string_view(rank) != stops) return;
  const std::string list = std::string(",") + moments + ",";
  if (list.find("," + moment + ",") != std::string::npos) std::raise(SIGSTOP);
}

/// The block whose state a waker of that futex has changed; null for somebody else's futex.
const weightcast_block* block_of(std::uintptr_t futex) {
  if (futex % WEIGHTCAST_BLOCK_BYTES != offsetof(weightcast_block, word)) return nullptr;
  const auto* block = reinterpret_cast<const weightcast_block*>(futex - offsetof(weightcast_block, word));
  return block->magic == WEIGHTCAST_BLOCK_MAGIC ? block : nullptr;
}

}  // namespace

extern "C" long syscall(long number, ...) noexcept {
  static const auto real = reinterpret_cast<long (*)(long, ...)>(::dlsym(RTLD_NEXT, "syscall"));
  std::va_list list;
  va_start(list, number);
  long words[6];
  for (long& word : words) word = va_arg(list, long);
  va_end(list);
  const long result = real(number, words[0], words[1], words[2], words[3], words[4], words[5]);
  if (number == SYS_futex && words[1] == FUTEX_WAKE) {
    const weightcast_block* block = block_of(static_cast<std::uintptr_t>(words[0]));
    if (block != nullptr) stop_at(std::to_string(WEIGHTCAST_STATE_OF(block->word)));
  }
  return result;
}

extern "C" int fcntl(int file, int command, ...) {
  static const auto real = reinterpret_cast<int (*)(int, int, ...)>(::dlsym(RTLD_NEXT, "fcntl"));
  std::va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  const int result = real(file, command, argument);
  if (result == 0 && command == F_SETLK) {
    const auto* range = static_cast<const struct flock*>(argument);
    if (range->l_type == F_WRLCK && range->l_start == WEIGHTCAST_LOCK_UPDATE && range->l_len == 1)
      stop_at("taken");
  }
  return result;
}

extern "C" int link(const char* from, const char* to) noexcept {
  const auto result = static_cast<int>(::syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
  if (result == 0 && std::string_view(to).find("/commit-") != std::string_view::npos) stop_at("recorded");
  return result;
}
