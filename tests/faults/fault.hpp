#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace weightcast::faults {

/// What a process asks of the system, of MPI or of its memory, and what the module that is preloaded counts:
/// a fault happens at one of these calls. Calls on files count only where their path contains FAULT_PATH,
/// allocations and MPI's calls from the end of MPI's own start on, and of a plain command from the beginning.
enum class Call : std::uint8_t {
  kOpen,       ///< open, openat
  kRead,       ///< read, pread, preadv
  kWrite,      ///< write, pwrite, pwritev
  kGrow,       ///< ftruncate, posix_fallocate, fallocate
  kMap,        ///< mmap of a file
  kFlush,      ///< fsync, fdatasync
  kRename,     ///< rename, renameat2
  kLink,       ///< link
  kUnlink,     ///< unlink
  kAllocate,   ///< operator new
  kBucket,     ///< MPI_Isend of so many bytes that it is weights
  kSend,       ///< MPI_Isend of fewer
  kReceive,    ///< MPI_Irecv
  kBroadcast,  ///< MPI_Ibcast
  kAgree       ///< MPI_Iallreduce, MPI_Iallgather, MPI_Igatherv
};
inline constexpr std::array<std::string_view, 15> kCallNames{
    "open",   "read",     "write",  "grow", "map",     "flush",     "rename", "link",
    "unlink", "allocate", "bucket", "send", "receive", "broadcast", "agree"};

/// How many bytes of a message are weights: what ranks tell one another is shorter.
inline constexpr std::size_t kLeastBucket = 1024;

/// What happens there.
enum class Deed : std::uint8_t {
  kKill,       ///< SIGKILL to the rank
  kStop,       ///< SIGSTOP to the rank
  kTerm,       ///< SIGTERM to the rank
  kSlow,       ///< the call takes FAULT_VALUE ms longer
  kFail,       ///< the call fails: with errno FAULT_VALUE, or MPI_ERR_OTHER, or std::bad_alloc
  kFull,       ///< this call and all later ones of this kind fail with ENOSPC
  kInterrupt,  ///< a read or write fails once with EINTR, which is no failure
  kShort,      ///< a read or write moves half of what was asked, which is no failure
  kCut,        ///< the file is cut to half its size before the call
  kChange,     ///< a byte in the middle of the file is another one before the call
  kReplace,    ///< another file takes the file's name before the call
  kRemove,     ///< the file's name is removed before the call
  kFlip,       ///< one bit of a message is another one on its way
  kDrop        ///< a message is never sent
};
inline constexpr std::array<std::string_view, 14> kDeedNames{
    "kill",  "stop", "term",   "slow",    "fail",   "full", "interrupt",
    "short", "cut",  "change", "replace", "remove", "flip", "drop"};

/// What a rank leaves behind of it, in a file of its own that it has mapped: so it is there however the rank
/// ends.
struct Record {
  std::array<std::atomic<std::int64_t>, kCallNames.size()> counts;  ///< how often each call was made
  std::atomic<std::int64_t> hit;  ///< when the fault happened, in ns of CLOCK_MONOTONIC; 0: not
};

/// The index of a name in one of the lists above, or the list's size.
template <std::size_t n>
constexpr std::size_t index_of(const std::array<std::string_view, n>& names, std::string_view name) {
  std::size_t i = 0;
  while (i < n && names[i] != name) ++i;
  return i;
}

}  // namespace weightcast::faults
