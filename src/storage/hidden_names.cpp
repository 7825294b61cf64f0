#include "storage/hidden_names.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <system_error>
#include <vector>

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kIdDigits = 16;

bool is_id(std::string_view text) {
  return text.size() == kIdDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// The extension of a name, without its dot.
std::string_view last_part(std::string_view name) {
  return name.substr(std::min(name.size(), name.rfind('.') + 1));
}

}  // namespace

std::string fresh_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

std::string hidden_path(const std::string& path, std::string_view kind) {
  const fs::path final_path(path);
  return (final_path.parent_path() /
          fmt::format(".{}.{}.{}", final_path.filename().string(), fresh_id(), kind))
      .string();
}

std::string_view finished_name(std::string_view name) {
  const std::string_view kind = last_part(name);
  if (!name.starts_with('.') || (kind != kPartial && kind != kOld)) return name;
  const std::string_view rest = name.substr(1, name.size() - 1 - kind.size() - 1);
  const std::string_view id = last_part(rest);
  if (is_id(id) && id.size() < rest.size()) return rest.substr(0, rest.size() - id.size() - 1);
  return kind == kPartial ? rest : name;
}

void remove_left_overs(const std::string& directory, const std::function<bool(std::string_view)>& mine) {
  std::vector<fs::path> found;
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const std::string_view finished = finished_name(name);
    if (finished != name && mine(finished)) found.push_back(entry->path());
  }
  for (const fs::path& path : found) {
    const std::string name = path.filename().string();
    const fs::path finished = path.parent_path() / finished_name(name);
    if (last_part(name) == kOld && fs::symlink_status(finished, error).type() == fs::file_type::not_found) {
      fs::rename(path, finished, error);
    } else if (!fs::is_directory(fs::symlink_status(path, error))) {
      fs::remove(path, error);
    }
  }
}

std::string directory_of(const std::string& path) {
  const std::string directory = fs::path(path).parent_path().string();
  return directory.empty() ? "." : directory;
}

}  // namespace weightcast
