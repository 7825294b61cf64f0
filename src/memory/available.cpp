#include "memory/available.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace weightcast {

namespace {

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

/// The first integer of a one-line file; nothing for `max` or a file that is not there.
std::optional<std::int64_t> integer_in(const std::string& path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

/// The value of a `name value` line, times `unit`.
std::int64_t field_in(const std::string& path, const std::string& name, std::int64_t unit,
                      std::int64_t absent) {
  std::ifstream file(path);
  std::string word;
  std::int64_t value = 0;
  while (file >> word) {
    if (word == name && file >> value) return value * unit;
  }
  return absent;
}

std::int64_t control_group_bytes() {
  // Page cache that can be dropped counts as used there but is free for us.
  const std::string v2 = "/sys/fs/cgroup/";
  if (const auto limit = integer_in(v2 + "memory.max")) {
    const std::int64_t used = integer_in(v2 + "memory.current").value_or(0);
    return *limit - used + field_in(v2 + "memory.stat", "inactive_file", 1, 0);
  }
  const std::string v1 = "/sys/fs/cgroup/memory/";
  if (const auto limit = integer_in(v1 + "memory.limit_in_bytes")) {
    const std::int64_t used = integer_in(v1 + "memory.usage_in_bytes").value_or(0);
    return *limit - used + field_in(v1 + "memory.stat", "total_inactive_file", 1, 0);
  }
  return kUnlimited;
}

std::int64_t address_space_bytes() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  return static_cast<std::int64_t>(limit.rlim_cur) - field_in("/proc/self/status", "VmSize:", 1024, 0);
}

}  // namespace

std::int64_t available_host_bytes() {
  return std::min({field_in("/proc/meminfo", "MemAvailable:", 1024, kUnlimited), control_group_bytes(),
                   address_space_bytes()});
}

}  // namespace weightcast
