#include "client/block.hpp"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

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
  struct flock range = byte_range(byte, F_WRLCK);
  if (::fcntl(file, F_GETLK, &range) != 0) return -1;
  if (range.l_type == F_UNLCK) return 0;
  return range.l_pid > 0 ? range.l_pid : -1;
}

Life life_of(std::uint64_t generation, int* process) {
  char name[64];
  name_of_memory(name, sizeof name, ::getuid(), generation, "control");
  const int file = ::shm_open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
  // A block that merely cannot be opened, for want of descriptors for example, may be a living exporter's.
  if (file < 0) return errno == ENOENT ? Life::kDead : Life::kUnknown;
  struct stat status = {};
  const bool is_own = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_uid == ::getuid();
  const int holder = is_own ? holder_of_lock(file, WEIGHTCAST_LOCK_EXPORTER) : 0;
  ::close(file);
  if (process != nullptr) *process = holder;
  errno = EACCES;
  if (!is_own) return Life::kUnknown;
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
