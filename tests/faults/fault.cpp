// To be preloaded into a job: counts calls, and at one of them, of one rank, does something else. Which one,
// in the environment:
//
//   FAULT_RECORD  a folder; every rank keeps a Record in its file `rank-R` there
//
//   FAULT_PLAIN   set: there is no launcher, and every process is rank 0
//
//   FAULT_PATH    only files whose path contains this count
//
//   FAULT_RANK, FAULT_CALL, FAULT_NUMBER  the rank, the call's name, its number among those, from 0
//
//   FAULT_DO, FAULT_VALUE  the deed's name, and its number

#include "faults/fault.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <mpi.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>

namespace {

using namespace weightcast::faults;

constexpr std::size_t kMostPath = 4096;
constexpr std::int64_t kNever = -1;

long number(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtol(text, nullptr, 10);
}

std::string_view word(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? std::string_view() : text;
}

/// Everything is read once, without operator new, which is among the calls.
struct Plan {
  long rank = number("OMPI_COMM_WORLD_RANK", 0);
  std::string_view path = word("FAULT_PATH");
  std::size_t call = index_of(kCallNames, word("FAULT_CALL"));
  std::int64_t at = rank == number("FAULT_RANK", -1) ? number("FAULT_NUMBER", kNever) : kNever;
  std::size_t deed = index_of(kDeedNames, word("FAULT_DO"));
  long value = number("FAULT_VALUE", 0);
  bool in_job = std::getenv("OMPI_COMM_WORLD_RANK") != nullptr;
  Record* record = map_record(rank);

  static Record* map_record(long rank) {
    const char* folder = std::getenv("FAULT_RECORD");
    // A launcher is neither.
    const bool counts =
        std::getenv("OMPI_COMM_WORLD_RANK") != nullptr || std::getenv("FAULT_PLAIN") != nullptr;
    if (folder == nullptr || !counts) return nullptr;
    char name[kMostPath];
    std::snprintf(name, sizeof name, "%s/rank-%ld", folder, rank);
    const auto file =
        static_cast<int>(::syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (file < 0 || ::syscall(SYS_ftruncate, file, sizeof(Record)) != 0) return nullptr;
    const long memory =
        ::syscall(SYS_mmap, nullptr, sizeof(Record), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ::syscall(SYS_close, file);
    return memory < 0 ? nullptr : reinterpret_cast<Record*>(memory);
  }
};

const Plan& plan() {
  static const Plan plan;
  return plan;
}

std::atomic<bool> mpi_is_there = false;
thread_local bool inside = false;  // what a deed itself calls is no call of the program

struct Inside {
  bool before = inside;
  Inside() { inside = true; }
  ~Inside() { inside = before; }
};

void note_hit() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  constexpr std::int64_t kSecond = 1'000'000'000;
  plan().record->hit = now.tv_sec * kSecond + now.tv_nsec;
}

/// Does what needs no more than the process and, where there is one, the file.
void act(Deed deed, const char* path) {
  const Inside guard;
  struct stat status = {};
  const bool is_file = path != nullptr && ::stat(path, &status) == 0 && S_ISREG(status.st_mode);
  switch (deed) {
    case Deed::kKill:
      ::raise(SIGKILL);
      break;
    case Deed::kStop:
      ::raise(SIGSTOP);
      break;
    case Deed::kTerm:
      ::raise(SIGTERM);
      break;
    case Deed::kSlow: {
      constexpr long kMilliseconds = 1000;
      constexpr long kNanoseconds = 1'000'000;
      timespec left{plan().value / kMilliseconds, plan().value % kMilliseconds * kNanoseconds};
      while (::nanosleep(&left, &left) != 0 && errno == EINTR) continue;
      break;
    }
    case Deed::kCut:
      if (is_file) ::syscall(SYS_truncate, path, status.st_size / 2);
      break;
    case Deed::kChange:
      if (is_file) {
        const auto file = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC));
        unsigned char byte = 0;
        if (::syscall(SYS_pread64, file, &byte, 1, status.st_size / 2) == 1) {
          byte ^= 0x10U;
          ::syscall(SYS_pwrite64, file, &byte, 1, status.st_size / 2);
        }
        ::syscall(SYS_close, file);
      }
      break;
    case Deed::kReplace:
      if (is_file) {
        char other[kMostPath];
        std::snprintf(other, sizeof other, "%s.other", path);
        const auto file =
            static_cast<int>(::syscall(SYS_openat, AT_FDCWD, other, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        ::syscall(SYS_ftruncate, file, status.st_size);
        ::syscall(SYS_close, file);
        ::syscall(SYS_renameat, AT_FDCWD, other, AT_FDCWD, path);
      }
      break;
    case Deed::kRemove:
      if (path != nullptr) ::syscall(SYS_unlinkat, AT_FDCWD, path, 0);
      break;
    default:
      break;
  }
}

/// Counts the call. Where the fault is due, it happens; the answer is the deed that the call itself has to
/// do.
Deed count(Call call, const char* path) {
  constexpr auto kNothing = Deed::kSlow;
  const auto index = static_cast<std::size_t>(call);
  if (inside || plan().record == nullptr) return kNothing;
  const std::int64_t which = plan().record->counts[index]++;
  if (index != plan().call || plan().at == kNever || which < plan().at) return kNothing;
  const auto deed = static_cast<Deed>(plan().deed);
  if (which != plan().at && deed != Deed::kFull) return kNothing;
  if (which == plan().at) note_hit();
  act(deed, path);
  return deed;
}

Deed count_path(Call call, const char* path) {
  if (path == nullptr || plan().path.empty() ||
      std::string_view(path).find(plan().path) == std::string_view::npos)
    return Deed::kSlow;
  return count(call, path);
}

Deed count_file(Call call, int file) {
  if (inside || plan().record == nullptr || file < 0) return Deed::kSlow;
  char link[64];
  char path[kMostPath];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = ::readlink(link, path, sizeof path - 1);
  if (length <= 0) return Deed::kSlow;
  path[length] = '\0';
  return count_path(call, path);
}

Deed count_memory(Call call) {
  return mpi_is_there || !plan().in_job ? count(call, nullptr) : Deed::kSlow;
}

bool fails(Deed deed) {
  if (deed == Deed::kFull) errno = ENOSPC;
  if (deed == Deed::kFail) errno = static_cast<int>(plan().value);
  if (deed == Deed::kInterrupt) errno = EINTR;
  return deed == Deed::kFull || deed == Deed::kFail || deed == Deed::kInterrupt;
}

size_t part_of(Deed deed, size_t bytes) {
  return deed == Deed::kShort && bytes > 1 ? bytes / 2 : bytes;
}

int open_file(int folder, const char* path, int flags, mode_t mode) {
  if (fails(count_path(Call::kOpen, path))) return -1;
  return static_cast<int>(::syscall(SYS_openat, folder, path, flags, mode));
}

mode_t mode_of(int flags, std::va_list list) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, mode_t) : 0;
}

ssize_t move_vectors(long call, Call kind, int file, const iovec* vectors, int count, off_t offset) {
  const Deed deed = count_file(kind, file);
  if (fails(deed)) return -1;
  if (deed == Deed::kShort && count > 0 && vectors[0].iov_len > 1) {
    const iovec half{vectors[0].iov_base, vectors[0].iov_len / 2};
    return ::syscall(call, file, &half, 1, offset, 0);
  }
  return ::syscall(call, file, vectors, count, offset, 0);
}

int grow(int file, auto&& real) {
  return fails(count_file(Call::kGrow, file)) ? -1 : static_cast<int>(real());
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming, cert-dcl50-cpp): the names of others
extern "C" int open(const char* path, int flags, ...) {
  std::va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return open_file(AT_FDCWD, path, flags, mode);
}
extern "C" int open64(const char* path, int flags, ...) {
  std::va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return open_file(AT_FDCWD, path, flags, mode);
}
extern "C" int openat(int folder, const char* path, int flags, ...) {
  std::va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return open_file(folder, path, flags, mode);
}
extern "C" ssize_t read(int file, void* to, size_t bytes) {
  const Deed deed = count_file(Call::kRead, file);
  return fails(deed) ? -1 : ::syscall(SYS_read, file, to, part_of(deed, bytes));
}
extern "C" ssize_t pread(int file, void* to, size_t bytes, off_t offset) {
  const Deed deed = count_file(Call::kRead, file);
  return fails(deed) ? -1 : ::syscall(SYS_pread64, file, to, part_of(deed, bytes), offset);
}
extern "C" ssize_t pread64(int file, void* to, size_t bytes, off_t offset) {
  return pread(file, to, bytes, offset);
}
extern "C" ssize_t preadv(int file, const iovec* vectors, int count, off_t offset) {
  return move_vectors(SYS_preadv, Call::kRead, file, vectors, count, offset);
}
extern "C" ssize_t preadv64(int file, const iovec* vectors, int count, off_t offset) {
  return move_vectors(SYS_preadv, Call::kRead, file, vectors, count, offset);
}
extern "C" ssize_t write(int file, const void* from, size_t bytes) {
  const Deed deed = count_file(Call::kWrite, file);
  return fails(deed) ? -1 : ::syscall(SYS_write, file, from, part_of(deed, bytes));
}
extern "C" ssize_t pwrite(int file, const void* from, size_t bytes, off_t offset) {
  const Deed deed = count_file(Call::kWrite, file);
  return fails(deed) ? -1 : ::syscall(SYS_pwrite64, file, from, part_of(deed, bytes), offset);
}
extern "C" ssize_t pwrite64(int file, const void* from, size_t bytes, off_t offset) {
  return pwrite(file, from, bytes, offset);
}
extern "C" ssize_t pwritev(int file, const iovec* vectors, int count, off_t offset) {
  return move_vectors(SYS_pwritev, Call::kWrite, file, vectors, count, offset);
}
extern "C" ssize_t pwritev64(int file, const iovec* vectors, int count, off_t offset) {
  return move_vectors(SYS_pwritev, Call::kWrite, file, vectors, count, offset);
}
extern "C" int ftruncate(int file, off_t bytes) noexcept {
  return grow(file, [&] { return ::syscall(SYS_ftruncate, file, bytes); });
}
extern "C" int ftruncate64(int file, off_t bytes) noexcept {
  return ftruncate(file, bytes);
}
extern "C" int fallocate(int file, int mode, off_t from, off_t bytes) {
  return grow(file, [&] { return ::syscall(SYS_fallocate, file, mode, from, bytes); });
}
extern "C" int posix_fallocate(int file, off_t from, off_t bytes) {
  return fallocate(file, 0, from, bytes) == 0 ? 0 : errno;
}
extern "C" void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  if ((flags & MAP_ANONYMOUS) == 0 && fails(count_file(Call::kMap, file))) return MAP_FAILED;
  return reinterpret_cast<void*>(::syscall(SYS_mmap, at, bytes, protection, flags, file, offset));
}
extern "C" int fsync(int file) {
  return fails(count_file(Call::kFlush, file)) ? -1 : static_cast<int>(::syscall(SYS_fsync, file));
}
extern "C" int fdatasync(int file) {
  return fails(count_file(Call::kFlush, file)) ? -1 : static_cast<int>(::syscall(SYS_fdatasync, file));
}
extern "C" int rename(const char* from, const char* to) noexcept {
  if (fails(count_path(Call::kRename, to))) return -1;
  return static_cast<int>(::syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to));
}
extern "C" int renameat2(int from_folder, const char* from, int to_folder, const char* to,
                         unsigned flags) noexcept {
  if (fails(count_path(Call::kRename, to))) return -1;
  return static_cast<int>(::syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
}
extern "C" int link(const char* from, const char* to) noexcept {
  if (fails(count_path(Call::kLink, from))) return -1;
  return static_cast<int>(::syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}
extern "C" int unlink(const char* path) noexcept {
  if (fails(count_path(Call::kUnlink, path))) return -1;
  return static_cast<int>(::syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}

void* operator new(std::size_t bytes) {
  if (fails(count_memory(Call::kAllocate))) throw std::bad_alloc();
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  if (fails(count_memory(Call::kAllocate))) throw std::bad_alloc();
  const auto unit = static_cast<std::size_t>(alignment);
  void* memory = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit + (bytes == 0 ? unit : 0));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

extern "C" int MPI_Init_thread(int* count, char*** words, int required, int* provided) {
  const int result = PMPI_Init_thread(count, words, required, provided);
  mpi_is_there = true;
  return result;
}
extern "C" int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  int element = 0;
  PMPI_Type_size(type, &element);
  const auto bytes = static_cast<std::size_t>(element) * static_cast<std::size_t>(count);
  const Deed deed = count_memory(bytes < kLeastBucket ? Call::kSend : Call::kBucket);
  if (fails(deed)) return MPI_ERR_OTHER;
  if (deed == Deed::kDrop) {
    *request = MPI_REQUEST_NULL;
    return MPI_SUCCESS;
  }
  if (deed == Deed::kFlip && bytes > 0) {
    // Kept until the process ends, because nobody here knows when the message has left.
    auto* copy = static_cast<unsigned char*>(std::malloc(bytes));
    std::memcpy(copy, data, bytes);
    copy[bytes / 2] ^= 0x04U;
    data = copy;
  }
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}
extern "C" int MPI_Irecv(void* data, int count, MPI_Datatype type, int from, int tag, MPI_Comm comm,
                         MPI_Request* request) {
  if (fails(count_memory(Call::kReceive))) return MPI_ERR_OTHER;
  return PMPI_Irecv(data, count, type, from, tag, comm, request);
}
extern "C" int MPI_Ibcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm,
                          MPI_Request* request) {
  if (fails(count_memory(Call::kBroadcast))) return MPI_ERR_OTHER;
  return PMPI_Ibcast(data, count, type, root, comm, request);
}
extern "C" int MPI_Iallreduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op operation,
                              MPI_Comm comm, MPI_Request* request) {
  if (fails(count_memory(Call::kAgree))) return MPI_ERR_OTHER;
  return PMPI_Iallreduce(from, to, count, type, operation, comm, request);
}
extern "C" int MPI_Iallgather(const void* from, int count, MPI_Datatype type, void* to, int each,
                              MPI_Datatype to_type, MPI_Comm comm, MPI_Request* request) {
  if (fails(count_memory(Call::kAgree))) return MPI_ERR_OTHER;
  return PMPI_Iallgather(from, count, type, to, each, to_type, comm, request);
}
extern "C" int MPI_Igatherv(const void* from, int count, MPI_Datatype type, void* to, const int* counts,
                            const int* offsets, MPI_Datatype to_type, int root, MPI_Comm comm,
                            MPI_Request* request) {
  if (fails(count_memory(Call::kAgree))) return MPI_ERR_OTHER;
  return PMPI_Igatherv(from, count, type, to, counts, offsets, to_type, root, comm, request);
}
// NOLINTEND(readability-identifier-naming, cert-dcl50-cpp)
