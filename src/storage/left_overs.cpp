#include "storage/left_overs.hpp"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "storage/hidden_names.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

}  // namespace

struct LeftOvers::Found {
  fs::path path;
  fs::path final_path;
  std::string id;
  fs::file_time_type written;
};

LeftOvers::LeftOvers(std::string directory, std::function<bool(std::string_view)> mine)
    : directory_(std::move(directory)), mine_(std::move(mine)) {}

LeftOvers::LeftOvers(const std::string& path)
    : LeftOvers(directory_of(path), [stem = hidden_stem(fs::path(path).filename().string())](
                                        std::string_view name) { return name == stem; }) {
  only_ = path;
}

std::vector<LeftOvers::Found> LeftOvers::find(std::string_view kind) const {
  std::vector<Found> found;
  std::error_code error;
  fs::directory_iterator entry(directory_, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    const fs::path& path = entry->path();
    const std::string name = path.filename().string();
    const HiddenName hidden = parse_hidden(name);
    std::error_code ignored;
    if (hidden.kind != kind || !mine_(hidden.stem) || fs::is_directory(fs::symlink_status(path, ignored))) {
      continue;
    }
    found.push_back({path, only_.empty() ? path.parent_path() / hidden.stem : fs::path(only_),
                     std::string(hidden.id), fs::last_write_time(path, ignored)});
  }
  std::ranges::sort(found, std::greater<>(), &Found::written);
  return found;
}

std::set<std::string> LeftOvers::unfinished() const {
  std::set<std::string> ids;
  for (const Found& partial : find(kPartial)) {
    // The form without an id does not say what belongs together.
    if (!partial.id.empty()) ids.insert(partial.id);
  }
  return ids;
}

void LeftOvers::clear_unfinished(const std::set<std::string>& elsewhere) const {
  const std::set<std::string> here = unfinished();
  std::set<std::string> stuck;  // replacements of which some old file could not get its name back
  for (const Found& old : find(kOld)) {
    std::error_code error;
    const bool undone = here.contains(old.id) || elsewhere.contains(old.id);
    if (!undone && fs::symlink_status(old.final_path, error).type() != fs::file_type::not_found) continue;
    fs::rename(old.path, old.final_path, error);
    if (error) stuck.insert(old.id);
    // A file that has both names keeps them.
    if (!error) fs::remove(old.path, error);
  }
  // Last, because they tell which replacements have not ended.
  for (const Found& partial : find(kPartial)) {
    std::error_code ignored;
    if (!stuck.contains(partial.id)) fs::remove(partial.path, ignored);
  }
}

void LeftOvers::clear_old() const {
  std::error_code ignored;
  for (const Found& old : find(kOld)) fs::remove(old.path, ignored);
}

}  // namespace weightcast
