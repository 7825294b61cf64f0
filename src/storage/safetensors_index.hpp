#pragma once

#include <string>
#include <utility>
#include <vector>

namespace weightcast {

/// The file of a folder that says which of several safetensors files holds which tensor.
inline constexpr const char* kSafetensorsIndexName = "model.safetensors.index.json";
/// What a checkpoint of one safetensors file is called.
inline constexpr const char* kSafetensorsSingleName = "model.safetensors";

/// What `model.safetensors.index.json` says.
struct SafetensorsIndex {
  std::vector<std::string> files;  ///< paths of the data files below the index's folder, sorted
  std::vector<std::pair<std::string, std::string>> tensors;  ///< tensor name and its data file, sorted
};

/// Throws IoError when the file cannot be read, InputError naming it when it is no proper index: it lists
/// nothing, or names a file that is not below its folder.
SafetensorsIndex read_safetensors_index(const std::string& path);

}  // namespace weightcast
