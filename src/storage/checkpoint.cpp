#include "storage/checkpoint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <system_error>
#include <unordered_map>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "core/text.hpp"
#include "storage/foreign_file.hpp"
#include "storage/foreign_folder.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_file.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/local_files.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/safetensors_index.hpp"
#include "storage/trainer_shard.hpp"
#include "storage/writer.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

// Hidden names do not count: they are other programs' unfinished business.
bool is_hdf5_name(const fs::path& path) {
  const std::string extension = path.extension().string();
  return (extension == ".h5" || extension == ".hdf5") && !path.filename().string().starts_with('.');
}

bool is_model_file(const fs::path& name) {
  return name.string().starts_with("model") && name.extension() == ".safetensors";
}

enum class PathKind { kDirectory, kFile };

PathKind kind_of(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    throw IoError(
        fmt::format("{} is not there; name a checkpoint: a folder of safetensors files, a .safetensors "
                    "file or an HDF5 file",
                    path));
  }
  if (error) {
    throw IoError(fmt::format("cannot look at {}: {}; check the permissions", path, error.message()));
  }
  return fs::is_directory(status) ? PathKind::kDirectory : PathKind::kFile;
}

// Names of the files of a folder for which `wanted` holds, sorted, with the folder.
template <typename Wanted>
std::vector<std::string> files_in(const std::string& directory, Wanted wanted) {
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

/// Whether a folder holds a file that may be a checkpoint's or a trainer's shard.
bool holds_weights(const std::string& directory) {
  const auto files = files_in(directory, [](const fs::path& name) {
    return name == kSafetensorsIndexName || is_model_file(name) || is_hdf5_name(name) ||
           is_trainer_shard(name.string());
  });
  return !files.empty();
}

// The HDF5 file of a folder. Throws when there is none, or more than one to choose from.
std::string hdf5_file_in(const std::string& directory) {
  const auto files = files_in(directory, is_hdf5_name);
  if (files.empty()) {
    const std::string what = describe_folder(directory);
    throw InputError(
        fmt::format("{} holds no checkpoint: neither {}, nor model*.safetensors, nor a .h5 file{}", directory,
                    kSafetensorsIndexName, what.empty() ? "; name the folder that does" : "; " + what));
  }
  if (files.size() > 1) {
    throw InputError(fmt::format("{} holds {} HDF5 files, for example {} and {}; name one of them", directory,
                                 files.size(), fs::path(files[0]).filename().string(),
                                 fs::path(files[1]).filename().string()));
  }
  return files.front();
}

void add_safetensors(Checkpoint& checkpoint, const std::string& path) {
  const bool first = checkpoint.files.empty();
  const auto [version, conversion] = read_safetensors_header(path, checkpoint);
  if (first) {
    checkpoint.weight_version = version;
    checkpoint.conversion = conversion;
  }
  if (version == checkpoint.weight_version) {
    if (conversion == checkpoint.conversion) return;
    throw InputError(
        fmt::format("{} and {} beside it are of different conversions; write the checkpoint again", path,
                    checkpoint.files.front().path));
  }
  const auto text = [](const std::optional<std::int64_t>& value) {
    return value ? fmt::format("weight version {}", *value) : std::string("no weight version");
  };
  throw InputError(fmt::format("{} is of {} but {} beside it of {}; write the checkpoint again", path,
                               text(version), checkpoint.files.front().path,
                               text(checkpoint.weight_version)));
}

void add_hdf5(Checkpoint& checkpoint, const std::string& path, OtherFiles other_files) {
  checkpoint.weight_version = read_hdf5_header(path, checkpoint, other_files);
  if (checkpoint.tensors.empty()) throw InputError(fmt::format("{} has no dataset", path));
}

void add_file(Checkpoint& checkpoint, const std::string& path, OtherFiles other_files) {
  if (has_hdf5_signature(path)) {
    add_hdf5(checkpoint, path, other_files);
  } else if (is_hdf5_name(path)) {
    const Hdf5Lock lock;
    open_hdf5(path);  // says what the file is instead
  } else {
    add_safetensors(checkpoint, path);
  }
}

// `model-00002-of-00005.safetensors` → `model-*-of-00005.safetensors`: what the files of one saving have in
// common. Another name is its own.
std::string family_of(const std::string& name) {
  const std::size_t of = name.rfind("-of-");
  const std::size_t dash = of == std::string::npos || of == 0 ? std::string::npos : name.rfind('-', of - 1);
  return dash == std::string::npos ? name : name.substr(0, dash + 1) + "*" + name.substr(of);
}

// Without an index nobody says which files belong together: a folder to which a checkpoint was saved twice,
// in another number of files, would be a mixture.
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

void sort_by_name(Checkpoint& checkpoint) {
  auto& tensors = checkpoint.tensors;
  std::ranges::sort(tensors, {}, &StoredTensor::name);
  const auto twice = std::ranges::adjacent_find(tensors, {}, &StoredTensor::name);
  if (twice == tensors.end()) return;
  const StoredTensor& other = *std::next(twice);
  if (twice->file == other.file) {
    throw InputError(fmt::format("{}: datasets '{}' and '{}' are both called '{}'",
                                 checkpoint.files[twice->file].path, excerpt(twice->dataset()),
                                 excerpt(other.dataset()), excerpt(twice->name)));
  }
  throw InputError(fmt::format("tensor '{}' is in both {} and {}; remove the file that is not meant",
                               excerpt(twice->name), checkpoint.files[twice->file].path,
                               checkpoint.files[other.file].path));
}

// A folder in which some files have been replaced and others were to be holds neither the old checkpoint nor
// the new one: a job is at it, or was killed in the middle.
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
  }
  for (const std::string& name : waiting) {
    const auto old = replaced.find(parse_hidden(name).id);
    if (old == replaced.end()) continue;
    throw InputError(fmt::format(
        "{} holds files of two checkpoints: it is being replaced, or was when a job was killed ({} is an old "
        "file, {} a new one that has not taken its name); run the job that writes it again",
        directory, old->second, name));
  }
}

// A single file beside an index that does not name it: some readers take the one, some the other.
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

// Reads the files that the index names and keeps what it lists: a file may still hold tensors that a later
// one has in its place.
void add_indexed(Checkpoint& checkpoint, const fs::path& directory) {
  const std::string index_path = (directory / kSafetensorsIndexName).string();
  const FileIdentity identity = InputFile(index_path).identity();
  const SafetensorsIndex index = read_safetensors_index(index_path);
  require_no_other_saving(index, directory);
  for (const std::string& name : index.files) {
    const std::string path = (directory / name).string();
    std::error_code error;
    if (!fs::exists(path, error) && !error) {
      const std::string unfinished = unfinished_download(directory.string(), name);
      throw InputError(fmt::format("{} names {}, {}", index_path, excerpt(name),
                                   unfinished.empty()
                                       ? "which is not there; copy it beside the index"
                                       : "whose download is unfinished (" + unfinished + "); finish it"));
    }
    add_safetensors(checkpoint, path);
  }
  std::unordered_map<std::string_view, std::string_view> file_of;
  for (const auto& [name, file] : index.tensors) file_of.emplace(name, file);
  std::erase_if(checkpoint.tensors, [&](const StoredTensor& tensor) {
    const auto listed = file_of.find(tensor.name);
    return listed == file_of.end() ||
           checkpoint.files[tensor.file].path != (directory / listed->second).string();
  });
  sort_by_name(checkpoint);
  for (const auto& [name, file] : index.tensors) {
    if (checkpoint.find(name) != nullptr) continue;
    throw InputError(fmt::format("{} says that tensor '{}' is in {}, but it is not there", index_path,
                                 excerpt(name), file));
  }
  require_same_file(InputFile(index_path).identity(), {index_path, identity, 0});
}

void add_directory(Checkpoint& checkpoint, const std::string& directory, OtherFiles other_files) {
  require_finished(directory);
  // A link that leads nowhere counts too, so that the index is missed and not passed over.
  std::error_code error;
  if (fs::exists(fs::symlink_status(fs::path(directory) / kSafetensorsIndexName, error))) {
    return add_indexed(checkpoint, directory);
  }
  const auto files = files_in(directory, is_model_file);
  require_one_saving(directory, files);
  for (const std::string& file : files) add_safetensors(checkpoint, file);
  if (files.empty()) add_file(checkpoint, hdf5_file_in(directory), other_files);
}

// The text of config.json that an HDF5 file carries, if it does.
std::optional<std::string> carried_config(const std::string& path) {
  const Hdf5Lock lock;
  const OpenHdf5 file = open_hdf5(path);
  const auto value = read_hdf5_attribute(file.file.get(), kConfigAttribute, path);
  if (!value) return std::nullopt;
  if (const auto* text = std::get_if<std::string>(&*value)) return *text;
  throw InputError(fmt::format("{}: attribute weightcast.config is no text", path));
}

}  // namespace

bool same_bytes(const StoredTensor& a, const StoredTensor& b) {
  return !a.through_library() && a.file == b.file && a.offset == b.offset && a.dtype == b.dtype &&
         a.shape == b.shape;
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const StoredTensor& tensor, std::string_view key) { return tensor.name < key; });
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

void Checkpoint::require_readable(const StoredTensor& tensor) const {
  if (tensor.obstacle == nullptr) return;
  throw InputError(
      fmt::format("{}: tensor {} {}", files[tensor.file].path, excerpt(tensor.name), tensor.obstacle->why));
}

Checkpoint read_checkpoint(const std::string& path, OtherFiles other_files) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.host = this_host();
  if (kind_of(path) == PathKind::kDirectory) {
    add_directory(checkpoint, path, other_files);
  } else {
    add_file(checkpoint, path, other_files);
  }
  sort_by_name(checkpoint);
  // A folder whose name leads to another one meanwhile would give some files of either.
  require_files_unchanged(checkpoint);
  return checkpoint;
}

std::string read_config_text(const std::string& checkpoint_path) {
  const bool in_directory = kind_of(checkpoint_path) == PathKind::kDirectory;
  const fs::path path(checkpoint_path);
  const fs::path beside = (in_directory ? path : path.parent_path()) / "config.json";
  std::error_code error;
  // A link that leads nowhere is missed, not passed over.
  if (fs::exists(fs::symlink_status(beside, error)))
    return read_json_file(beside.string(), JsonLimits{}.bytes);

  std::string file = checkpoint_path;
  if (in_directory) {
    const auto files = files_in(checkpoint_path, is_hdf5_name);
    file = files.size() == 1 ? files.front() : "";
  }
  if (!file.empty() && has_hdf5_signature(file)) {
    if (auto text = carried_config(file)) return *std::move(text);
  }
  // Without weights that is what is missing first.
  if (in_directory && !holds_weights(checkpoint_path)) hdf5_file_in(checkpoint_path);
  throw IoError(
      fmt::format("{} has no config.json beside it ({} is not there); name the model's config.json with "
                  "--model",
                  checkpoint_path, beside.string()));
}

}  // namespace weightcast
