#include "memory/available.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

/// The first integer of a one-line file; nothing for `max` or a file that is not there.
std::optional<std::int64_t> integer_in(const fs::path& path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

/// The value of a `name value` line, times `unit`.
std::int64_t field_in(const fs::path& path, const std::string& name, std::int64_t unit, std::int64_t absent) {
  std::ifstream file(path);
  std::string word;
  std::int64_t value = 0;
  while (file >> word) {
    if (word == name && file >> value) return value * unit;
  }
  return absent;
}

/// Where a version of control groups keeps its memory figures.
struct GroupFiles {
  const char* mount;
  const char* limit;
  const char* used;
  const char* cache;  ///< field of memory.stat
};

constexpr GroupFiles kVersion1{"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                               "total_inactive_file"};
constexpr GroupFiles kVersion2{"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};

std::int64_t group_bytes(const fs::path& folder, const GroupFiles& files) {
  const auto limit = integer_in(folder / files.limit);
  if (!limit) return kUnlimited;
  // Page cache that can be dropped counts as used there but is free for us.
  const std::int64_t used =
      integer_in(folder / files.used).value_or(0) - field_in(folder / "memory.stat", files.cache, 1, 0);
  return *limit - std::max<std::int64_t>(used, 0);
}

/// The least of a group and of those around it, because each of their limits binds. In a container the path
/// may be one that only the host sees; then the walk ends at what is mounted, which is the container's own.
std::int64_t nested_group_bytes(const fs::path& root, fs::path group, const GroupFiles& files) {
  std::int64_t least = kUnlimited;
  for (;; group = group.parent_path()) {
    least = std::min(least, group_bytes(root / files.mount / group, files));
    if (group.empty()) return least;
  }
}

std::int64_t control_group_bytes(const fs::path& root) {
  std::int64_t least = kUnlimited;
  std::ifstream groups(root / "proc/self/cgroup");
  // `0::PATH` is version 2, `9:memory:PATH` version 1; a system may have both.
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const bool version_2 = controllers == ",,";
    if (!version_2 && controllers.find(",memory,") == std::string::npos) continue;
    const fs::path group = fs::path(line.substr(second + 1)).relative_path();
    least = std::min(least, nested_group_bytes(root, group, version_2 ? kVersion2 : kVersion1));
  }
  return least;
}

}  // namespace

std::int64_t available_node_bytes(const fs::path& root) {
  return std::min(field_in(root / "proc/meminfo", "MemAvailable:", 1024, kUnlimited),
                  control_group_bytes(root));
}

std::int64_t available_process_bytes() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  return static_cast<std::int64_t>(limit.rlim_cur) - field_in("/proc/self/status", "VmSize:", 1024, 0);
}

}  // namespace weightcast
