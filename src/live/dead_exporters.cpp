#include "live/dead_exporters.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <vector>

#include "client/block.hpp"
#include "client/memory_names.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "live/folder.hpp"
#include "live/open_block.hpp"
#include "sys/process.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;
using client::Life;

constexpr const char* kSharedMemory = "/dev/shm";
constexpr std::string_view kControl = "control";

/// The name of memory of this user's exporter of that generation.
std::string own_memory(std::uint64_t generation, std::string_view what) {
  return name_of_memory(::getuid(), generation, what);
}

/// What a dead exporter has left in memory.
struct Remains {
  std::vector<std::string> names;  ///< of files in /dev/shm, the control block's last
  std::int64_t bytes = 0;
};

Remains remains_of(std::uint64_t generation) {
  const std::string stem = own_memory(generation, "").substr(1);
  Remains remains;
  for (const auto& entry : fs::directory_iterator(kSharedMemory)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(stem)) continue;
    struct stat status = {};
    if (::lstat(entry.path().c_str(), &status) != 0 || status.st_uid != ::getuid()) continue;
    constexpr std::int64_t kBlock = 512;
    remains.bytes += status.st_blocks * kBlock;  // not its size: most of a window is not there
    const bool is_control = name.substr(stem.size()) == kControl;
    remains.names.insert(is_control ? remains.names.end() : remains.names.begin(), name);
  }
  return remains;
}

/// Removes the memory of a dead exporter. What was removed, for people. Throws IoError naming what stays,
/// when all else is gone.
std::string remove_memory(std::uint64_t generation) {
  const Remains remains = remains_of(generation);
  std::string refused;
  for (const std::string& name : remains.names) {
    // While something stays the block does, too, by which the next one finds it.
    if (!refused.empty() && name.ends_with(kControl)) break;
    if (::shm_unlink(("/" + name).c_str()) == 0 || errno == ENOENT || !refused.empty()) continue;
    refused =
        fmt::format("{}/{} cannot be removed, do it by hand: {}", kSharedMemory, name, std::strerror(errno));
  }
  if (!refused.empty()) throw IoError(refused);
  return fmt::format("{} of shared memory ({})",
                     counted(static_cast<std::int64_t>(remains.names.size()), "file"),
                     format_bytes(remains.bytes));
}

/// Removes a manifest, unless another has taken its place. Under a name of its own nobody can take its place
/// between the look and the removal.
void remove_manifest(const Manifest& manifest) {
  const std::string aside = fmt::format("{}.{:016x}", manifest.path, manifest.generation);
  std::error_code error;
  fs::rename(manifest.path, aside, error);
  if (error == std::errc::no_such_file_or_directory) return;
  if (error)
    throw IoError(fmt::format("{} cannot be removed, do it by hand: {}", manifest.path, error.message()));
  bool is_other = false;
  try {
    is_other = read_manifest(aside).generation != manifest.generation;
  } catch (const Error&) {
    is_other = true;
  }
  // Where a third one has come meanwhile, that one stays.
  if (is_other) fs::create_hard_link(aside, manifest.path, error);
  fs::remove(aside, error);
}

const char* why_not_seen(Reach reach) {
  switch (reach) {
    case Reach::kOtherHost:
      return "of another host: clean there";
    case Reach::kOtherBoot:
      return "of a host of this name before it was started anew: remove the file if it is this host";
    case Reach::kOtherUser:
      return "of another user, who can clean";
    case Reach::kOtherShm:
      return "of a container with another /dev/shm: clean there";
    case Reach::kCopy:
      return "a copy of one in another folder: remove the file";
    case Reach::kHere:
      break;
  }
  return "";
}

void clean_manifest(const Manifest& manifest, Cleaning& cleaning) {
  const auto keep = [&](const std::string& why) {
    cleaning.kept.push_back(fmt::format("{} is {}", manifest.path, why));
  };
  if (const Reach reach = reach_of(manifest); reach != Reach::kHere) return keep(why_not_seen(reach));
  const bool there = fs::exists(kSharedMemory + own_memory(manifest.generation, kControl));
  const Life life = client::life_of(manifest.generation);
  if (life == Life::kLives) return;
  if (life == Life::kUnknown) return keep("of an exporter whose control block is not readable: try again");
  // Without its block nobody can say whether the exporter has closed or lost its memory.
  if (!there && is_running(manifest.pid)) {
    return keep(fmt::format("without shared memory, but a process {} lives: stop it", manifest.pid));
  }
  // The manifest last: where this is cut short, the next one finds it.
  const std::string memory = remove_memory(manifest.generation);
  remove_manifest(manifest);
  cleaning.removed.push_back(
      fmt::format("{} of process {}, which is dead, and {}", manifest.path, manifest.pid, memory));
}

bool is_own(const std::string& path) {
  struct stat status = {};
  return ::lstat(path.c_str(), &status) == 0 && status.st_uid == ::getuid();
}

void remove_file(const std::string& path, const std::string& what, Cleaning& cleaning) {
  std::error_code error;
  fs::remove(path, error);
  if (error) throw IoError(fmt::format("{} cannot be removed, do it by hand: {}", path, error.message()));
  cleaning.removed.push_back(fmt::format("{}, {}", path, what));
}

void clean_unfinished(const UnfinishedManifest& manifest, Cleaning& cleaning) {
  // An hour is more than writing one takes anywhere.
  constexpr std::int64_t kLong = 3600;
  if (!is_own(manifest.path)) return;
  const bool there = fs::exists(kSharedMemory + own_memory(manifest.generation, kControl));
  const Life life = client::life_of(manifest.generation);
  if (there && life != Life::kDead) return;
  if (there || manifest.age > kLong)
    return remove_file(manifest.path, "which a dead process has not finished", cleaning);
  cleaning.kept.push_back(
      fmt::format("{} is a manifest that is not finished, and its process is not seen from here: clean on "
                  "its host",
                  manifest.path));
}

/// Why an update of the folder's engines may be under way; empty when none is.
std::string why_busy(const std::vector<FoundManifest>& all) {
  for (const FoundManifest& found : all) {
    if (found.role != Role::kEngine) continue;
    if (!found.manifest) return found.path + " cannot be read";
    const Reach reach = reach_of(*found.manifest);
    if (reach == Reach::kOtherBoot) continue;
    if (reach != Reach::kHere) return found.path + " is not seen from here";
    try {
      if (OpenBlock(*found.manifest, Access::kRead).updater() != 0) return found.path + " is in an update";
    } catch (const Error&) {
      // Its block is gone, and nobody can have it for an update.
    }
  }
  return "";
}

/// What `clean` throws is said, and does not keep the rest.
template <typename Clean>
void go_on(Cleaning& cleaning, Clean clean) {
  try {
    clean();
  } catch (const Error& refused) {
    cleaning.kept.emplace_back(refused.what());
  }
}

}  // namespace

bool is_dead(const Manifest& manifest) {
  const Reach reach = reach_of(manifest);
  return reach == Reach::kOtherBoot ||
         (reach == Reach::kHere && client::life_of(manifest.generation) == Life::kDead);
}

void require_not_dead(const Manifest& manifest) {
  if (!is_dead(manifest)) return;
  throw IoError(
      fmt::format("{}: its exporter, process {}, is gone; start it again", manifest.path, manifest.pid));
}

Cleaning remove_dead_exporters(const std::string& directory) {
  Cleaning cleaning;
  const std::vector<FoundManifest> all = find_manifests(directory);
  const std::string busy = why_busy(all);
  for (const std::string& path : unnamed_records(directory)) {
    if (!is_own(path)) continue;
    if (busy.empty()) {
      go_on(cleaning, [&] { remove_file(path, "which a dead job step has left", cleaning); });
    } else {
      cleaning.kept.push_back(fmt::format("{} may be of an update that is under way: {}", path, busy));
    }
  }
  for (const UnfinishedManifest& manifest : unfinished_manifests(directory)) {
    go_on(cleaning, [&] { clean_unfinished(manifest, cleaning); });
  }
  for (const FoundManifest& found : all) {
    if (found.manifest) {
      go_on(cleaning, [&] { clean_manifest(*found.manifest, cleaning); });
    } else {
      cleaning.kept.emplace_back(found.wrong->what());
    }
  }
  std::vector<std::uint64_t> dead;
  for (const auto& entry : fs::directory_iterator(kSharedMemory)) {
    std::uint64_t generation = 0;
    if (!client::is_own_block(entry.path().filename().c_str(), &generation)) continue;
    if (client::life_of(generation) == Life::kDead) dead.push_back(generation);
  }
  for (const std::uint64_t generation : dead) {
    go_on(cleaning, [&] {
      cleaning.removed.push_back(fmt::format("{}{}*, which a dead process has left: {}", kSharedMemory,
                                             own_memory(generation, ""), remove_memory(generation)));
    });
  }
  return cleaning;
}

}  // namespace weightcast
