#include "live/dead_exporters.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "client/block.hpp"
#include "client/memory_names.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "live/folder.hpp"
#include "live/open_block.hpp"

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
    remains.bytes += status.st_size;
    const bool is_control = name.substr(stem.size()) == kControl;
    remains.names.insert(is_control ? remains.names.end() : remains.names.begin(), name);
  }
  return remains;
}

/// Removes the memory of a dead exporter. What was removed, for people.
std::string remove_memory(std::uint64_t generation) {
  const Remains remains = remains_of(generation);
  // Where this is cut short the block stays, by which the next one finds the rest.
  for (const std::string& name : remains.names) {
    if (::shm_unlink(("/" + name).c_str()) == 0 || errno == ENOENT) continue;
    throw IoError(
        fmt::format("{}/{} cannot be removed, do it by hand: {}", kSharedMemory, name, std::strerror(errno)));
  }
  return fmt::format("{} files of shared memory ({})", remains.names.size(), format_bytes(remains.bytes));
}

/// Removes a manifest, unless another has taken its place.
void remove_manifest(const Manifest& manifest) {
  std::error_code error;
  if (!fs::exists(manifest.path, error) || read_manifest(manifest.path).generation != manifest.generation) {
    return;
  }
  fs::remove(manifest.path, error);
  if (error)
    throw IoError(fmt::format("{} cannot be removed, do it by hand: {}", manifest.path, error.message()));
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
  if (!there && (::kill(static_cast<pid_t>(manifest.pid), 0) == 0 || errno != ESRCH)) {
    return keep(fmt::format("without shared memory, but a process {} lives: stop it", manifest.pid));
  }
  // The manifest last: where this is cut short, the next one finds it.
  const std::string memory = remove_memory(manifest.generation);
  remove_manifest(manifest);
  cleaning.removed.push_back(
      fmt::format("{} of process {}, which is dead, and {}", manifest.path, manifest.pid, memory));
}

}  // namespace

Cleaning remove_dead_exporters(const std::string& directory) {
  Cleaning cleaning;
  for (const FoundManifest& found : find_manifests(directory)) {
    if (found.manifest) {
      clean_manifest(*found.manifest, cleaning);
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
    cleaning.removed.push_back(fmt::format("{}{}*, which a dead process has left: {}", kSharedMemory,
                                           own_memory(generation, ""), remove_memory(generation)));
  }
  return cleaning;
}

}  // namespace weightcast
