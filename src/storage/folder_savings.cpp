#include "storage/folder_savings.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <system_error>

#include "core/error.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/journal.hpp"
#include "storage/model_files.hpp"
#include "storage/rank_file.hpp"

namespace weightcast {

namespace fs = std::filesystem;

namespace {

// `model-00002-of-00005.safetensors` → `model-*-of-00005.safetensors`: what the files of one saving have in
// common. Another name is its own.
std::string family_of(const std::string& name) {
  const std::size_t of = name.rfind("-of-");
  const std::size_t dash = of == std::string::npos || of == 0 ? std::string::npos : name.rfind('-', of - 1);
  return dash == std::string::npos ? name : name.substr(0, dash + 1) + "*" + name.substr(of);
}

// Whether the new file of which a journal tells has its name.
bool is_placed(const std::string& journal, const HiddenName& hidden) {
  struct stat there {};
  const std::string path = (fs::path(journal).parent_path() / hidden.stem).string();
  if (::lstat(path.c_str(), &there) != 0) return false;
  try {
    const auto known = read_journal(journal);
    return known && known->entry.fresh && identity_of(there) == *known->entry.fresh;
  } catch (const IoError&) {
    // Another user's, or gone meanwhile: it is nothing that a reader needs.
    return false;
  }
}

/// The path of the first file for whose name `wanted` holds; empty when there is none, or no folder.
std::string first_in(const std::string& directory, const std::function<bool(const std::string&)>& wanted) {
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored)) return "";
  const auto files = files_in(directory, [&](const fs::path& name) { return wanted(name.string()); });
  return files.empty() ? std::string() : files.front();
}

}  // namespace

std::string safetensors_in(const std::string& directory) {
  return first_in(directory, [](const std::string& name) {
    return is_model_data(name) || name == kSafetensorsIndexName;
  });
}

std::string hdf5_or_shard_in(const std::string& directory) {
  return first_in(directory, [](const std::string& name) {
    return is_hdf5_name(name) || parse_rank_file(kShardStem, name);
  });
}

std::vector<std::string> files_in(const std::string& directory,
                                  const std::function<bool(const std::filesystem::path&)>& wanted) {
  std::error_code error;
  std::vector<std::string> found;
  fs::directory_iterator entry(directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    const bool is_file = !entry->is_directory(ignored);
    if (is_file && wanted(entry->path().filename())) found.push_back(entry->path().string());
  }
  if (error) {
    throw IoError(fmt::format("cannot list {}: {}; check the permissions", directory, error.message()));
  }
  std::sort(found.begin(), found.end());
  return found;
}

void require_finished(const std::string& directory) {
  std::map<std::string, std::string, std::less<>> replaced;  // old files by the id of their replacement
  std::vector<std::string> waiting;
  for (const std::string& path :
       files_in(directory, [](const fs::path& name) { return name.string().starts_with('.'); })) {
    const std::string name = fs::path(path).filename().string();
    const HiddenName hidden = parse_hidden(name);
    if (hidden.kind.empty() || !(hidden.stem.starts_with("model") || hidden.stem.ends_with(".json")))
      continue;
    if (hidden.kind == kPartial) waiting.push_back(name);
    if (hidden.kind == kOld) replaced.emplace(hidden.id, name);
    if (hidden.kind == kJournal && is_placed(path, hidden)) replaced.emplace(hidden.id, hidden.stem);
  }
  for (const std::string& name : waiting) {
    const auto old = replaced.find(parse_hidden(name).id);
    if (old == replaced.end()) continue;
    throw InputError(
        fmt::format("{} holds files of two checkpoints: it is being replaced, or was when a job was killed "
                    "({} tells of a file that was replaced, {} of one that was not); run the job that writes "
                    "it again",
                    directory, old->second, name));
  }
}

void require_one_saving(const std::string& directory, const std::vector<std::string>& files) {
  struct Saving {
    std::string name;
    fs::file_time_type newest;
  };
  std::vector<Saving> savings;
  for (const std::string& file : files) {
    std::error_code ignored;
    const Saving one{family_of(fs::path(file).filename().string()), fs::last_write_time(file, ignored)};
    const auto known = std::ranges::find(savings, one.name, &Saving::name);
    if (known == savings.end()) {
      savings.push_back(one);
    } else {
      known->newest = std::max(known->newest, one.newest);
    }
  }
  const auto counted = [](const Saving& saving) {
    return saving.name.find("-*-of-") != std::string::npos || saving.name == kSafetensorsSingleName;
  };
  std::erase_if(savings, [&](const Saving& saving) { return !counted(saving); });
  if (savings.size() < 2) return;
  std::ranges::sort(savings, {}, &Saving::newest);
  throw InputError(fmt::format(
      "{} holds the files of {} savings and no {} that says which are meant: {} is older than {}; remove "
      "the files of the one that is not meant",
      directory, savings.size(), kSafetensorsIndexName, savings.front().name, savings.back().name));
}

void require_no_other_saving(const SafetensorsIndex& index, const fs::path& directory) {
  const fs::path single = directory / kSafetensorsSingleName;
  std::error_code error;
  if (std::ranges::binary_search(index.files, single.filename().string()) || !fs::exists(single, error))
    return;
  const bool newer =
      fs::last_write_time(single, error) > fs::last_write_time(directory / kSafetensorsIndexName, error);
  throw InputError(fmt::format(
      "{} holds {} and {}, which does not name it: two savings, of which {} is the newer one; remove the one "
      "that is not meant",
      directory.string(), kSafetensorsSingleName, kSafetensorsIndexName,
      newer ? kSafetensorsSingleName : kSafetensorsIndexName));
}

}  // namespace weightcast
