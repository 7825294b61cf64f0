#include "live/dead_exporters.hpp"

#include <fcntl.h>
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
#include "core/error.hpp"
#include "core/units.hpp"
#include "live/folder.hpp"
#include "live/open_block.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr const char* kSharedMemory = "/dev/shm";
constexpr std::string_view kControl = "-control";

enum class Life { kLives, kDead, kUnknown };

/// Of the exporter with that control block, a name of shared memory. Only locks are looked at.
Life life_of(const std::string& control) {
  const int file = ::shm_open(control.c_str(), O_RDONLY | O_CLOEXEC, 0);
  if (file < 0) return Life::kUnknown;
  Life life = Life::kUnknown;
  struct stat status = {};
  std::uint64_t magic = 0;
  if (::fstat(file, &status) == 0 && status.st_uid == ::getuid() &&
      ::pread(file, &magic, sizeof magic, 0) == static_cast<ssize_t>(sizeof magic) &&
      // Before that the exporter has yet to take its lock.
      magic == WEIGHTCAST_BLOCK_MAGIC) {
    life = client::holder_of_lock(file, WEIGHTCAST_LOCK_EXPORTER) == 0 ? Life::kDead : Life::kLives;
  }
  ::close(file);
  return life;
}

/// `weightcast-1000-00ff00ff00ff00ff-` of a control block's name, with which all memory of its exporter
/// begins.
std::string stem_of(std::string_view control) {
  return std::string(control.substr(0, control.size() - kControl.size() + 1));
}

/// Removes the memory of a dead exporter, its control block last, so that what is interrupted can be done
/// again. What was removed, for people.
std::string remove_memory(const std::string& stem) {
  std::vector<std::string> names;
  std::int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(kSharedMemory)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(stem)) continue;
    struct stat status = {};
    if (::lstat(entry.path().c_str(), &status) != 0 || status.st_uid != ::getuid()) continue;
    bytes += status.st_size;
    name.ends_with(kControl) ? names.push_back(name) : static_cast<void>(names.insert(names.begin(), name));
  }
  for (const std::string& name : names) {
    if (::shm_unlink(("/" + name).c_str()) == 0 || errno == ENOENT) continue;
    throw IoError(fmt::format("{}/{} cannot be removed: {}", kSharedMemory, name, std::strerror(errno)));
  }
  return fmt::format("{} files of shared memory ({})", names.size(), format_bytes(bytes));
}

/// Removes a manifest, unless another has taken its place.
void remove_manifest(const Manifest& manifest) {
  if (read_manifest(manifest.path).generation != manifest.generation) return;
  std::error_code error;
  fs::remove(manifest.path, error);
  if (error) throw IoError(fmt::format("{} cannot be removed: {}", manifest.path, error.message()));
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
  const bool there = fs::exists(kSharedMemory + manifest.control);
  const Life life = there ? life_of(manifest.control) : Life::kDead;
  if (life == Life::kLives) return;
  if (life == Life::kUnknown) return keep("of an exporter whose control block is not readable: try again");
  // Without its block nobody can say whether the exporter has closed or lost its memory.
  if (!there && (::kill(static_cast<pid_t>(manifest.pid), 0) == 0 || errno != ESRCH)) {
    return keep(fmt::format("without shared memory, but a process {} lives: stop it", manifest.pid));
  }
  // First what others would find.
  remove_manifest(manifest);
  const std::string memory = remove_memory(stem_of(std::string_view(manifest.control).substr(1)));
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
  const std::string own = fmt::format("weightcast-{}-", ::getuid());
  std::vector<std::string> dead;
  for (const auto& entry : fs::directory_iterator(kSharedMemory)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(own) && name.ends_with(kControl) && life_of("/" + name) == Life::kDead) {
      dead.push_back(stem_of(name));
    }
  }
  for (const std::string& stem : dead) {
    cleaning.removed.push_back(
        fmt::format("{}/{}*, which a dead process has left: {}", kSharedMemory, stem, remove_memory(stem)));
  }
  return cleaning;
}

}  // namespace weightcast
