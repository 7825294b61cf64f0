#include "storage/unfinished.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <map>
#include <mutex>
#include <system_error>
#include <utility>

#include "storage/hidden_names.hpp"
#include "storage/rename.hpp"

namespace weightcast {

namespace {

struct Registry {
  std::mutex mutex;
  std::map<const void*, Unfinished> entries;
};

Registry& registry() {
  static Registry registry;
  return registry;
}

/// Moves the new file back to its hidden name. Should another job have put its own there this very moment,
/// that one gets its name again.
int hide(const UnfinishedFile& file) {
  if (::rename(file.final_path.c_str(), file.partial_path.c_str()) != 0) return -1;
  struct stat moved {};
  if (::lstat(file.partial_path.c_str(), &moved) != 0) return 0;
  if (identity_of(moved) != *file.entry.fresh) {
    take_free_name(file.partial_path, file.final_path);
  } else if (is_name_of(file.final_path, moved)) {
    // It had both names, and a rename from one to the other changes nothing.
    return ::unlink(file.final_path.c_str());
  }
  return 0;
}

/// Where a file of that name and descriptor is by now; empty when nothing has that name any more.
std::filesystem::path path_now(int descriptor, const std::string& path) {
  struct stat open {};
  if (descriptor < 0 || ::fstat(descriptor, &open) != 0) return {};
  std::error_code error;
  std::filesystem::path now =
      std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(descriptor), error);
  if (error || now.filename() != std::filesystem::path(path).filename()) return {};
  return is_name_of(now.string(), open) ? now : std::filesystem::path();
}

}  // namespace

void note_unfinished(const void* key, Unfinished state) {
  const std::scoped_lock lock(registry().mutex);
  registry().entries.insert_or_assign(key, std::move(state));
}

void forget_unfinished(const void* key) {
  const std::scoped_lock lock(registry().mutex);
  registry().entries.erase(key);
}

PutBack put_back(const UnfinishedFile& file) {
  // What is gone a rank of the job that broke off has put back, in its last moment.
  const auto result_of = [](int error) {
    errno = error;
    if (error == EEXIST) return PutBack::kStranger;
    return error == 0 || error == ENOENT ? PutBack::kDone : PutBack::kRefused;
  };
  struct stat there {};
  const bool taken = ::lstat(file.final_path.c_str(), &there) == 0;
  if (!taken && errno != ENOENT) return PutBack::kRefused;
  const bool is_fresh = taken && file.entry.fresh && identity_of(there) == *file.entry.fresh;
  struct stat old {};
  if (::lstat(file.old_path.c_str(), &old) != 0) {
    if (errno != ENOENT) return PutBack::kRefused;
    if (!is_fresh) return PutBack::kDone;
    return file.entry.old ? PutBack::kStranger : result_of(hide(file) == 0 ? 0 : errno);
  }
  const bool is_old = file.entry.old && identity_of(old) == *file.entry.old;
  if (is_old && !taken) return result_of(take_free_name(file.old_path, file.final_path));
  if (is_old && is_fresh) return result_of(take_name_of(*file.entry.fresh, file.old_path, file.final_path));
  // Whoever put it back may not have come to remove the new one, which then has the hidden name.
  if (file.entry.fresh && identity_of(old) == *file.entry.fresh) {
    return result_of(::unlink(file.old_path.c_str()) == 0 ? 0 : errno);
  }
  return taken && is_name_of(file.old_path, there) ? PutBack::kDone : PutBack::kStranger;
}

bool mark_broken_off(const UnfinishedFile& file) {
  struct stat there {};
  if (::lstat(file.journal_path.c_str(), &there) != 0 && errno == ENOENT) return false;
  const int fd =
      ::open(file.partial_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd >= 0) ::close(fd);
  return true;
}

void remove_hidden(const UnfinishedFile& file) {
  const std::filesystem::path now = path_now(file.descriptor, file.partial_path);
  const std::string folder = directory_of(now.empty() ? file.partial_path : now.string());
  // Names with an id of this replacement's own.
  for (const std::string& name : {file.partial_path, file.old_path, file.journal_path}) {
    ::unlink((std::filesystem::path(folder) / std::filesystem::path(name).filename()).c_str());
  }
}

void undo(const UnfinishedFile& file) {
  if (!file.promised) {
    remove_hidden(file);
  } else if (mark_broken_off(file)) {
    put_back(file);
  }
}

void undo(const UnfinishedLock& lock) {
  if (is_name_of(lock.path, lock.file)) {
    ::unlink(lock.path.c_str());
  } else {
    ::unlink(path_now(lock.descriptor, lock.path).c_str());
  }
}

void undo(const UnfinishedFolder& folder) {
  std::string path = folder.path;
  for (int level = 0; level < folder.levels && ::rmdir(path.c_str()) == 0; ++level) path = directory_of(path);
}

void undo_unfinished() {
  const std::scoped_lock guard(registry().mutex);
  for (std::size_t kind = 0; kind < std::variant_size_v<Unfinished>; ++kind) {
    for (const auto& [key, state] : registry().entries) {
      if (state.index() == kind) std::visit([](const auto& unfinished) { undo(unfinished); }, state);
    }
  }
  registry().entries.clear();
}

}  // namespace weightcast
