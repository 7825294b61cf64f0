#include "client/memory.hpp"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "client/block.hpp"
#include "client/error.hpp"
#include "client/memory_names.hpp"

namespace weightcast::client {

namespace {

int no_memory(const weightcast_export& e) {
  return fail_with_errno(
      "%s rank %d: no shared memory can be made in /dev/shm; mount it as a tmpfs that this user may write, "
      "and "
      "look at this process's limits (ulimit -a)",
      e.engine ? "engine" : "trainer", e.rank);
}

/// Bytes that /dev/shm, in which `file` lies, still has.
std::int64_t room_beside(int file) {
  struct statvfs shm = {};
  return ::fstatvfs(file, &shm) == 0 ? static_cast<std::int64_t>(shm.f_bavail * shm.f_frsize) : 0;
}

/// Of `bytes` that /dev/shm, in which `file` lies, does not have.
void no_room(const weightcast_export& e, int file, std::int64_t bytes) {
  const int error = errno;
  const std::int64_t room = room_beside(file);
  errno = error;
  fail_with_errno("%s rank %d: there is no room for %" PRId64 " bytes in /dev/shm, of which %" PRId64
                  " are free; remove what dead exporters have left (weightcast hosts --clean %s), or make it "
                  "larger (docker run --shm-size)",
                  e.engine ? "engine" : "trainer", e.rank, bytes, room, e.folder);
}

/// Null when the system refuses.
void* map(const weightcast_export& e, int file, std::int64_t bytes) {
  void* memory =
      ::mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory != MAP_FAILED) return memory;
  no_memory(e);
  return nullptr;
}

/// Maps `bytes` of a new file, all of them reserved: what the system has no room for is an error now and not
/// a signal later. Null when it refuses.
void* reserve(const weightcast_export& e, int file, std::int64_t bytes) {
  do {
    errno = ::posix_fallocate(file, 0, bytes);
  } while (errno == EINTR);
  if (errno != 0) {
    // A limit of the process, for example, is no lack of room.
    errno == ENOSPC ? no_room(e, file, bytes) : static_cast<void>(no_memory(e));
    return nullptr;
  }
  return map(e, file, bytes);
}

/// Maps `bytes` of a new file, of which `limit` have room now. Null when the system refuses.
void* map_sparse(const weightcast_export& e, int file, std::int64_t bytes, std::int64_t limit) {
  if (::ftruncate(file, bytes) != 0) {
    no_memory(e);
    return nullptr;
  }
  if (limit > room_beside(file)) {
    errno = ENOSPC;
    no_room(e, file, limit);
    return nullptr;
  }
  return map(e, file, bytes);
}

/// Calls `visit(rest)` with what follows `prefix` in the name of each shared memory that begins with it.
/// False when some may not have been seen.
template <typename Visit>
bool for_each_memory(const char* prefix, Visit visit) {
  DIR* folder = ::opendir("/dev/shm");
  if (folder == nullptr) return false;
  // Names of memory begin with a slash, names of files do not.
  const std::size_t length = std::strlen(prefix + 1);
  errno = 0;
  while (const dirent* entry = ::readdir(folder)) {
    if (std::strstr(entry->d_name, prefix + 1) == entry->d_name) visit(entry->d_name + length);
    errno = 0;
  }
  const bool all = errno == 0;
  ::closedir(folder);
  return all;
}

/// Whether no shared memory has that name any more.
bool unlink_memory(const char* name) {
  return ::shm_unlink(name) == 0 || errno == ENOENT;
}

/// A new file of that name, mapped by `map_file(file)`. Null when the system refuses.
template <typename MapFile>
void* make_memory_by(const weightcast_export& e, const char* name, MapFile map_file) {
  const int file = ::shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) {
    no_memory(e);
    return nullptr;
  }
  void* memory = map_file(file);
  if (memory == nullptr) ::shm_unlink(name);
  ::close(file);
  return memory;
}

}  // namespace

void* make_memory(const weightcast_export& e, const char* name, std::int64_t bytes) {
  return make_memory_by(e, name, [&](int file) { return reserve(e, file, bytes); });
}

void* make_sparse_memory(const weightcast_export& e, const char* name, std::int64_t bytes,
                         std::int64_t limit) {
  return make_memory_by(e, name, [&](int file) { return map_sparse(e, file, bytes, limit); });
}

int make_block(weightcast_export& e) {
  name_of_memory(e.block_name, sizeof e.block_name, ::getuid(), e.generation, "control");
  e.block_file = ::open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (e.block_file < 0) return no_memory(e);
  e.block = static_cast<weightcast_block*>(reserve(e, e.block_file, WEIGHTCAST_BLOCK_BYTES));
  int code = e.block == nullptr ? WEIGHTCAST_REFUSED : WEIGHTCAST_OK;
  if (code == WEIGHTCAST_OK) {
    e.block->magic = WEIGHTCAST_BLOCK_MAGIC;
    e.block->generation = e.generation;
    e.block->word = WEIGHTCAST_WORD(e.engine ? WEIGHTCAST_NONE : WEIGHTCAST_TRAINING, 0);
    char file[64];
    char path[128];
    std::snprintf(file, sizeof file, "/proc/self/fd/%d", e.block_file);
    std::snprintf(path, sizeof path, "/dev/shm%s", e.block_name);
    if (!take_lock(e.block_file, WEIGHTCAST_LOCK_EXPORTER) ||
        ::linkat(AT_FDCWD, file, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0) {
      code = no_memory(e);
      ::munmap(e.block, WEIGHTCAST_BLOCK_BYTES);
    }
  }
  if (code != WEIGHTCAST_OK) ::close(e.block_file);
  return code;
}

void remove_memory(std::uint64_t generation) {
  char prefix[64];
  name_of_memory(prefix, sizeof prefix, ::getuid(), generation, "");
  char name[320];
  bool gone = true;
  const bool all = for_each_memory(prefix, [&](const char* what) {
    std::snprintf(name, sizeof name, "%s%s", prefix, what);
    if (std::strcmp(what, "control") != 0) gone = unlink_memory(name) && gone;
  });
  std::snprintf(name, sizeof name, "%scontrol", prefix);
  if (all && gone) unlink_memory(name);
}

void remove_memory(const weightcast_export& e) {
  bool gone = true;
  for (int i = 0; i < e.segments.size; ++i) {
    const Segment& segment = e.segments.items[i];
    if (segment.memory != nullptr) gone = unlink_memory(segment.name) && gone;
  }
  if (e.list != nullptr) gone = unlink_memory(e.list_name) && gone;
  if (e.experts != nullptr) gone = unlink_memory(e.experts_name) && gone;
  if (gone) unlink_memory(e.block_name);
}

void remove_what_is_dead() {
  for_each_memory("/", [](const char* file) {
    std::uint64_t generation = 0;
    if (is_own_block(file, &generation) && life_of(generation) == Life::kDead) remove_memory(generation);
  });
}

}  // namespace weightcast::client
