#include "storage/unfinished.hpp"

#include <unistd.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <utility>

#include "storage/writer.hpp"

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

bool undo(const Unfinished& state) {
  if (!state.partial_path.empty()) ::unlink(state.partial_path.c_str());
  if (!state.old_path.empty()) {
    if (!state.final_is_old) return ::rename(state.old_path.c_str(), state.final_path.c_str()) == 0;
    // It has both names.
    ::unlink(state.old_path.c_str());
  }
  return state.final_is_old || ::unlink(state.final_path.c_str()) == 0;
}

void remove_partial_files() {
  const std::scoped_lock guard(registry().mutex);
  // Locks last: whoever waits for one finds everything as it was.
  for (const bool lock_files : {false, true}) {
    for (const auto& [key, state] : registry().entries) {
      if (state.final_path.empty() == lock_files) undo(state);
    }
  }
  registry().entries.clear();
}

}  // namespace weightcast
