#include "client/block.hpp"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>
#include <cstdio>

#include "client/memory_names.hpp"

namespace weightcast::client {

namespace {

// A futex is 32 bits: those in which the state is.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
const std::uint32_t* low_half(const weightcast_block& block) {
  return reinterpret_cast<const std::uint32_t*>(&block.word);
}

struct flock byte_range(weightcast_lock byte, short type) {
  struct flock range = {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = byte;
  range.l_len = 1;
  return range;
}

/// The holder that `command` names, as holder_of_lock() says it.
int holder_said_by(int file, weightcast_lock byte, int command) {
  struct flock range = byte_range(byte, F_WRLCK);
  if (::fcntl(file, command, &range) != 0) return -1;
  if (range.l_type == F_UNLCK) return 0;
  return range.l_pid > 0 ? range.l_pid : -1;
}

/// Finds a descriptor that this process has of a file; -1 when it has none. False when nobody can say.
bool find_descriptor(const struct stat& file, int* found) {
  DIR* all = ::opendir("/proc/self/fd");
  if (all == nullptr) return false;
  *found = -1;
  while (const dirent* entry = ::readdir(all)) {
    char* end = nullptr;
    const auto number = static_cast<int>(::strtol(entry->d_name, &end, 10));
    struct stat status = {};
    if (*end != '\0' || ::fstat(number, &status) != 0) continue;
    if (status.st_dev == file.st_dev && status.st_ino == file.st_ino) *found = number;
  }
  ::closedir(all);
  return true;
}

}  // namespace

bool change_word(weightcast_block& block, std::uint64_t from, std::uint64_t to) {
  if (!__atomic_compare_exchange_n(&block.word, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    return false;
  ::syscall(SYS_futex, low_half(block), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  return true;
}

bool invalidate(weightcast_block& block, std::uint64_t word, weightcast_written written, const char* cause) {
  block.lost = block.asked;
  block.written = written;
  put_text(block.cause, sizeof block.cause, cause);
  block.reason[0] = '\0';
  return change_word(block, word, WEIGHTCAST_WORD(WEIGHTCAST_INVALID, WEIGHTCAST_UPDATE_OF(word)));
}

void await_change(const weightcast_block& block, std::uint64_t word, double seconds) {
  if (seconds <= 0) return;
  timespec time = {};
  time.tv_sec = static_cast<time_t>(seconds);
  time.tv_nsec = static_cast<long>((seconds - static_cast<double>(time.tv_sec)) * 1e9);
  ::syscall(SYS_futex, low_half(block), FUTEX_WAIT, static_cast<std::uint32_t>(word), &time, nullptr, 0);
}

bool take_lock(int file, weightcast_lock byte, bool shared) {
  struct flock range = byte_range(byte, shared ? F_RDLCK : F_WRLCK);
  return ::fcntl(file, F_SETLK, &range) == 0;
}

void drop_lock(int file, weightcast_lock byte) {
  struct flock range = byte_range(byte, F_UNLCK);
  ::fcntl(file, F_SETLK, &range);
}

int holder_of_lock(int file, weightcast_lock byte) {
  return holder_said_by(file, byte, F_GETLK);
}

Life life_of(std::uint64_t generation, int* process) {
  char name[64];
  char path[96];
  name_of_memory(name, sizeof name, ::getuid(), generation, "control");
  std::snprintf(path, sizeof path, "/dev/shm%s", name);
  struct stat status = {};
  if (::lstat(path, &status) != 0) return errno == ENOENT ? Life::kDead : Life::kUnknown;
  errno = EACCES;
  if (!S_ISREG(status.st_mode) || status.st_uid != ::getuid()) return Life::kUnknown;
  // To open and close the file would drop the locks that this process itself has on it. So one that it has
  // open is asked through that descriptor, and the question is that of an open file, which sees them, too.
  int file = -1;
  if (!find_descriptor(status, &file)) return Life::kUnknown;
  int holder = 0;
  if (file >= 0) {
    holder = holder_said_by(file, WEIGHTCAST_LOCK_EXPORTER, F_OFD_GETLK);
  } else {
    file = ::shm_open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0);
    // A block that merely cannot be opened, for want of descriptors for example, may be a living exporter's.
    if (file < 0) return errno == ENOENT ? Life::kDead : Life::kUnknown;
    holder = holder_of_lock(file, WEIGHTCAST_LOCK_EXPORTER);
    ::close(file);
  }
  if (process != nullptr) *process = holder;
  return holder == 0 ? Life::kDead : Life::kLives;
}

void put_text(char* field, std::uint64_t size, const char* text) {
  std::uint64_t at = 0;
  for (; at + 1 < size && text[at] != '\0'; ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    field[at] = byte < 0x20 || byte == 0x7f ? ' ' : text[at];
  }
  field[at] = '\0';
}

double now() {
  timespec time = {};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace weightcast::client
