#include "storage/checkpoint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "core/error.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/input_file.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

// Hidden names do not count: they are other programs' unfinished business.
bool is_hdf5_name(const fs::path& path) {
  const std::string extension = path.extension().string();
  return (extension == ".h5" || extension == ".hdf5") && !path.filename().string().starts_with('.');
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

// The HDF5 file of a folder. Throws when there is none, or more than one to choose from.
std::string hdf5_file_in(const std::string& directory) {
  const auto files = files_in(directory, is_hdf5_name);
  if (files.empty()) {
    throw InputError(
        fmt::format("{} holds no checkpoint: neither {}, nor model*.safetensors, nor a .h5 file (of "
                    "trainers' shards name one, or use them with --trainer-alloc)",
                    directory, kSafetensorsIndexName));
  }
  if (files.size() > 1) {
    throw InputError(fmt::format("{} holds {} HDF5 files, for example {} and {}; name one of them", directory,
                                 files.size(), fs::path(files[0]).filename().string(),
                                 fs::path(files[1]).filename().string()));
  }
  return files.front();
}

void add_safetensors(Checkpoint& checkpoint, const std::string& path) {
  const auto number = static_cast<std::uint32_t>(checkpoint.files.size());
  checkpoint.files.push_back(path);
  const auto version = read_safetensors_header(path, number, checkpoint.tensors);
  if (!version) return;
  if (checkpoint.weight_version.value_or(*version) != *version) {
    throw InputError(
        fmt::format("{} is of weight version {} but files beside it are of {}; write the checkpoint again",
                    path, *version, *checkpoint.weight_version));
  }
  checkpoint.weight_version = version;
}

void add_hdf5(Checkpoint& checkpoint, const std::string& path) {
  const auto number = static_cast<std::uint32_t>(checkpoint.files.size());
  checkpoint.files.push_back(path);
  checkpoint.weight_version = read_hdf5_header(path, number, checkpoint.tensors);
  if (checkpoint.tensors.empty()) throw InputError(fmt::format("{} has no dataset at its root", path));
}

void add_file(Checkpoint& checkpoint, const std::string& path) {
  if (has_hdf5_signature(path)) {
    add_hdf5(checkpoint, path);
  } else if (is_hdf5_name(path)) {
    throw InputError(fmt::format("{} is not an HDF5 file, in spite of its name", path));
  } else {
    add_safetensors(checkpoint, path);
  }
}

void sort_by_name(Checkpoint& checkpoint) {
  auto& tensors = checkpoint.tensors;
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const StoredTensor& a, const StoredTensor& b) { return a.name == b.name; });
  if (twice != tensors.end()) {
    throw InputError(fmt::format("tensor '{}' is in both {} and {}", twice->name,
                                 checkpoint.files[twice->file], checkpoint.files[std::next(twice)->file]));
  }
}

// Reads the files that the index names, and checks that they hold what it says.
void add_indexed(Checkpoint& checkpoint, const fs::path& directory) {
  const std::string index_path = (directory / kSafetensorsIndexName).string();
  const SafetensorsIndex index = read_safetensors_index(index_path);
  for (const std::string& name : index.files) {
    const std::string path = (directory / name).string();
    std::error_code error;
    if (!fs::exists(path, error) && !error) {
      throw InputError(
          fmt::format("{} names {}, which is not there; copy it beside the index", index_path, name));
    }
    add_safetensors(checkpoint, path);
  }
  sort_by_name(checkpoint);
  for (const auto& [name, file] : index.tensors) {
    const StoredTensor* tensor = checkpoint.find(name);
    if (tensor == nullptr || fs::path(checkpoint.files[tensor->file]).filename() != file) {
      throw InputError(
          fmt::format("{} says that tensor '{}' is in {}, but it is not there", index_path, name, file));
    }
  }
}

void add_directory(Checkpoint& checkpoint, const std::string& directory) {
  // A link that leads nowhere counts too, so that the index is missed and not passed over.
  std::error_code error;
  if (fs::exists(fs::symlink_status(fs::path(directory) / kSafetensorsIndexName, error))) {
    return add_indexed(checkpoint, directory);
  }
  const auto files = files_in(directory, [](const fs::path& name) {
    return name.string().starts_with("model") && name.extension() == ".safetensors";
  });
  for (const std::string& file : files) add_safetensors(checkpoint, file);
  if (files.empty()) add_file(checkpoint, hdf5_file_in(directory));
}

// The text of config.json that an HDF5 file carries, if it does.
std::optional<std::string> carried_config(const std::string& path) {
  const Hdf5Lock lock;
  const Hdf5File file = open_hdf5(path);
  const auto value = read_hdf5_attribute(file.get(), kConfigAttribute, path);
  if (!value) return std::nullopt;
  if (const auto* text = std::get_if<std::string>(&*value)) return *text;
  throw InputError(fmt::format("{}: attribute weightcast.config is no text", path));
}

}  // namespace

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const StoredTensor& tensor, std::string_view key) { return tensor.name < key; });
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

Checkpoint read_checkpoint(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  if (kind_of(path) == PathKind::kDirectory) {
    add_directory(checkpoint, path);
  } else {
    add_file(checkpoint, path);
  }
  sort_by_name(checkpoint);
  return checkpoint;
}

std::string read_config_text(const std::string& checkpoint_path) {
  const bool in_directory = kind_of(checkpoint_path) == PathKind::kDirectory;
  const fs::path path(checkpoint_path);
  const fs::path beside = (in_directory ? path : path.parent_path()) / "config.json";
  std::error_code error;
  if (fs::exists(beside, error)) return read_text_file(beside.string());

  std::string file = checkpoint_path;
  if (in_directory) {
    const auto files = files_in(checkpoint_path, is_hdf5_name);
    file = files.size() == 1 ? files.front() : "";
  }
  if (!file.empty() && has_hdf5_signature(file)) {
    if (auto text = carried_config(file)) return *std::move(text);
  }
  throw IoError(
      fmt::format("{} has no config.json beside it ({} is not there); name the model's config.json with "
                  "--model",
                  checkpoint_path, beside.string()));
}

}  // namespace weightcast
