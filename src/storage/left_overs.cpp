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
                     fs::last_write_time(path, ignored)});
  }
  std::ranges::sort(found, std::greater<>(), &Found::written);
  return found;
}

void LeftOvers::clear_unfinished() const {
  std::error_code ignored;
  for (const Found& partial : find(kPartial)) fs::remove(partial.path, ignored);
  for (const Found& old : find(kOld)) {
    if (fs::symlink_status(old.final_path, ignored).type() != fs::file_type::not_found) continue;
    fs::rename(old.path, old.final_path, ignored);
  }
}

void LeftOvers::clear_old() const {
  std::error_code ignored;
  for (const Found& old : find(kOld)) fs::remove(old.path, ignored);
}

}  // namespace weightcast
