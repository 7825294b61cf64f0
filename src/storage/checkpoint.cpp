#include "storage/checkpoint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <set>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "core/text.hpp"
#include "storage/folder_savings.hpp"
#include "storage/foreign_file.hpp"
#include "storage/foreign_folder.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_file.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/hdf5_trial.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/model_files.hpp"
#include "storage/rank_file.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/safetensors_index.hpp"
#include "storage/trainer_shard.hpp"
#include "storage/writer.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

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

/// Whether a folder holds a file that may be a checkpoint's or a trainer's shard.
bool holds_weights(const std::string& directory) {
  const auto files = files_in(directory, [](const fs::path& name) {
    return name == kSafetensorsIndexName || is_model_data(name.string()) || is_hdf5_name(name.string()) ||
           is_trainer_shard(name.string());
  });
  return !files.empty();
}

std::vector<std::string> hdf5_files_in(const std::string& directory) {
  return files_in(directory, [](const fs::path& name) { return is_hdf5_name(name.string()); });
}

// The HDF5 file of a folder. Throws when there is none, or more than one to choose from.
std::string hdf5_file_in(const std::string& directory) {
  const auto files = hdf5_files_in(directory);
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
  if (checkpoint.tensors.empty())
    throw InputError(fmt::format("{} has no dataset; name a file of weights", path));
}

void add_file(Checkpoint& checkpoint, const std::string& path, OtherFiles other_files) {
  if (has_hdf5_signature(path)) {
    add_hdf5(checkpoint, path, other_files);
  } else if (is_hdf5_name(fs::path(path).filename().string())) {
    const Hdf5Lock lock;
    open_hdf5(path);  // says what the file is instead
  } else if (fs::path(path).extension() == ".json") {
    throw InputError(fmt::format("{} is no file of weights; name its folder, {}, or a file of weights in it",
                                 path, directory_of(path)));
  } else {
    add_safetensors(checkpoint, path);
  }
}

void sort_by_name(Checkpoint& checkpoint) {
  auto& tensors = checkpoint.tensors;
  std::ranges::sort(tensors, {}, &StoredTensor::name);
  const auto twice = std::ranges::adjacent_find(tensors, {}, &StoredTensor::name);
  if (twice == tensors.end()) return;
  const StoredTensor& other = *std::next(twice);
  if (twice->file == other.file) {
    throw InputError(
        fmt::format("{}: datasets '{}' and '{}' are both called '{}'; remove or rename one of them",
                    checkpoint.files[twice->file].path, excerpt(twice->dataset()), excerpt(other.dataset()),
                    excerpt(twice->name)));
  }
  throw InputError(fmt::format("tensor '{}' is in both {} and {}; remove the file that is not meant",
                               excerpt(twice->name), checkpoint.files[twice->file].path,
                               checkpoint.files[other.file].path));
}

// Reads the files that the index names and keeps what it lists: a file may still hold tensors that a later
// one has in its place.
void add_indexed(Checkpoint& checkpoint, const fs::path& directory) {
  const std::string index_path = (directory / kSafetensorsIndexName).string();
  checkpoint.texts.push_back(describe_text(index_path));
  const SafetensorsIndex index = read_safetensors_index(index_path);
  require_no_other_saving(index, directory);
  for (const std::string& name : index.files) {
    const std::string path = (directory / name).string();
    std::error_code error;
    // No file has a name that is too long to look for.
    if (!fs::exists(path, error) && (!error || error == std::errc::filename_too_long)) {
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
  const auto is_listed = [&](const StoredTensor& tensor) {
    const auto listed = file_of.find(tensor.name);
    return listed != file_of.end() &&
           checkpoint.files[tensor.file].path == (directory / listed->second).string();
  };
  // Another name that the metadata gives to a tensor that is listed counts, too, unless the index has it.
  std::set<std::pair<std::uint32_t, std::int64_t>> places;
  for (const StoredTensor& tensor : checkpoint.tensors) {
    if (is_listed(tensor) && tensor.bytes() > 0) places.emplace(tensor.file, tensor.offset);
  }
  std::erase_if(checkpoint.tensors, [&](const StoredTensor& tensor) {
    const bool names_listed =
        !file_of.contains(tensor.name) && places.contains(std::pair(tensor.file, tensor.offset));
    return !is_listed(tensor) && !names_listed;
  });
  sort_by_name(checkpoint);
  for (const auto& [name, file] : index.tensors) {
    if (checkpoint.find(name) != nullptr) continue;
    throw InputError(fmt::format("{} says that tensor '{}' is in {}, but it is not there; copy both again",
                                 index_path, excerpt(name), excerpt(file)));
  }
}

// Each kind of reader would take its own files and pass over the others, which may be newer.
void require_one_kind(const std::string& directory) {
  const auto first = [&](const std::function<bool(const std::string&)>& wanted) {
    const auto files = files_in(directory, [&](const fs::path& name) { return wanted(name.string()); });
    return files.empty() ? std::string() : fs::path(files.front()).filename().string();
  };
  std::vector<std::string> kinds{
      first([](const std::string& name) { return is_model_data(name) || name == kSafetensorsIndexName; }),
      first([](const std::string& name) { return is_hdf5_name(name) && !is_trainer_shard(name); }),
      first([](const std::string& name) {
        const auto shard = parse_rank_file(kShardStem, name);
        return shard && shard->format == FileFormat::kSafetensors;
      }),
      first([](const std::string& name) { return is_trainer_shard(name); })};
  std::erase(kinds, "");
  if (kinds.size() < 2) return;
  throw InputError(fmt::format(
      "{} holds {} and {}, which are two savings, and nothing says which is meant; name that file itself, or "
      "move what is not meant out of the folder",
      directory, excerpt(kinds[0]), excerpt(kinds[1])));
}

void add_directory(Checkpoint& checkpoint, const std::string& directory, OtherFiles other_files) {
  require_finished(directory);
  require_one_kind(directory);
  // A link that leads nowhere counts too, so that the index is missed and not passed over.
  if (is_named((fs::path(directory) / kSafetensorsIndexName).string())) {
    return add_indexed(checkpoint, directory);
  }
  const auto files = files_in(directory, [](const fs::path& name) { return is_model_data(name.string()); });
  require_one_saving(directory, files);
  for (const std::string& file : files) add_safetensors(checkpoint, file);
  if (files.empty()) add_file(checkpoint, hdf5_file_in(directory), other_files);
}

// The text of config.json that an HDF5 file carries, if it does.
std::optional<std::string> carried_config(const std::string& path) {
  const Hdf5Lock lock;
  const auto read = [&] {
    const OpenHdf5 file = open_hdf5(path);
    return read_hdf5_attribute(file.file.get(), kConfigAttribute, path);
  };
  require_survivable(path, InputFile(path).size(), read);
  const auto value = read();
  if (!value) return std::nullopt;
  if (const auto* text = std::get_if<std::string>(&*value)) return *text;
  throw InputError(fmt::format(
      "{}: attribute weightcast.config is no text; name the model's config.json with --model", path));
}

/// Where a checkpoint's config.json has to be.
fs::path config_beside(const fs::path& checkpoint, bool is_directory) {
  return (is_directory ? checkpoint : checkpoint.parent_path()) / "config.json";
}

bool holds_rank_shards(const std::string& directory) {
  return !files_in(directory, [](const fs::path& name) {
            return parse_rank_file(kShardStem, name.string()).has_value();
          }).empty();
}

}  // namespace

bool same_bytes(const StoredTensor& a, const StoredTensor& b) {
  // What the library reads is known by the dataset, everything else by its place.
  return a.file == b.file && a.offset == b.offset && (!a.through_library() || a.object == b.object) &&
         a.dtype == b.dtype && a.shape == b.shape;
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
  const bool in_directory = kind_of(path) == PathKind::kDirectory;
  if (in_directory) {
    add_directory(checkpoint, path, other_files);
  } else if (fs::path(path).filename() == kSafetensorsIndexName) {
    require_finished(directory_of(path));
    add_indexed(checkpoint, directory_of(path));
  } else {
    add_file(checkpoint, path, other_files);
  }
  sort_by_name(checkpoint);
  // A folder whose name leads to another one meanwhile would give some files of either.
  require_files_unchanged(checkpoint);
  return checkpoint;
}

std::optional<std::string> find_config_text(const std::string& checkpoint_path,
                                            std::vector<CheckpointFile>* texts) {
  const bool in_directory = kind_of(checkpoint_path) == PathKind::kDirectory;
  const auto carried = [&](const std::string& file) -> std::optional<std::string> {
    if (file.empty() || !has_hdf5_signature(file)) return std::nullopt;
    const CheckpointFile described = describe_text(file);
    std::optional<std::string> text = carried_config(file);
    if (text && texts != nullptr) texts->push_back(described);
    return text;
  };
  // A file's own is of this very checkpoint; what lies beside it may be of another one.
  if (!in_directory) {
    if (auto text = carried(checkpoint_path)) return text;
  }
  const fs::path beside = config_beside(checkpoint_path, in_directory);
  // A link that leads nowhere is missed, not passed over.
  if (is_named(beside.string())) {
    const CheckpointFile described = describe_text(beside.string());
    if (texts != nullptr) texts->push_back(described);
    return read_json_file(beside.string(), JsonLimits{}.bytes);
  }
  if (in_directory) {
    const auto files = hdf5_files_in(checkpoint_path);
    if (files.size() == 1) return carried(files.front());
  }
  return std::nullopt;
}

std::string read_config_text(const std::string& checkpoint_path, std::vector<CheckpointFile>* texts) {
  if (auto text = find_config_text(checkpoint_path, texts)) return *std::move(text);
  const bool in_directory = kind_of(checkpoint_path) == PathKind::kDirectory;
  // Without weights that is what is missing first.
  if (in_directory && !holds_weights(checkpoint_path)) hdf5_file_in(checkpoint_path);
  if (in_directory && holds_rank_shards(checkpoint_path)) {
    throw InputError(fmt::format("{}: {}", checkpoint_path, describe_folder(checkpoint_path)));
  }
  throw IoError(
      fmt::format("{} has no config.json beside it ({} is not there); name the model's config.json with "
                  "--model",
                  checkpoint_path, config_beside(checkpoint_path, in_directory).string()));
}

}  // namespace weightcast
