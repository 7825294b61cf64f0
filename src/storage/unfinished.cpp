#include "storage/unfinished.hpp"

#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <map>
#include <mutex>
#include <utility>

#include "storage/hidden_names.hpp"

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

}  // namespace

void note_unfinished(const void* key, Unfinished state) {
  const std::scoped_lock lock(registry().mutex);
  registry().entries.insert_or_assign(key, std::move(state));
}

void forget_unfinished(const void* key) {
  const std::scoped_lock lock(registry().mutex);
  registry().entries.erase(key);
}

bool undo(const UnfinishedFile& file) {
  if (!file.partial_path.empty()) ::unlink(file.partial_path.c_str());
  if (!file.old_path.empty()) {
    if (!file.final_is_old) return ::rename(file.old_path.c_str(), file.final_path.c_str()) == 0;
    // It has both names.
    ::unlink(file.old_path.c_str());
  }
  return file.final_is_old || ::unlink(file.final_path.c_str()) == 0;
}

bool undo(const UnfinishedLock& lock) {
  ::unlink(lock.path.c_str());
  return true;
}

bool undo(const UnfinishedFolder& folder) {
  std::string path = folder.path;
  for (int level = 0; level < folder.levels && ::rmdir(path.c_str()) == 0; ++level) path = directory_of(path);
  return true;
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
