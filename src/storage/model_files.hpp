#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast {

/// What readers take for data of a checkpoint: `model*.safetensors`.
bool is_model_data(std::string_view name);

/// Whether a path ends as HDF5 files are called: `.h5`, `.hdf5`, `.hdf` or `.he5`, in capitals or not.
bool ends_as_hdf5(std::string_view path);

/// What readers take for an HDF5 checkpoint in a folder. Hidden names do not count: they are other programs'
/// unfinished business.
bool is_hdf5_name(std::string_view name);

/// The first name that is missing where files are numbered as those of one saving are
/// (`model-00002-of-00003.safetensors`); empty where all are there, or none has a number.
std::string missing_of_saving(const std::vector<std::string>& paths);

/// Whether `create_safetensors` gives that name to one of its files of tensors or to their index.
bool is_model_file(std::string_view name);

/// What has such a name in a folder, which may be missing. Throws IoError when the folder cannot be listed.
std::vector<std::filesystem::path> model_files_in(const std::string& directory);

/// Throws IoError when a checkpoint in that folder would replace, remove or be read beside files that this
/// program has not written. An index and a `config.json` say nothing of who wrote them: they count as the
/// data files beside them, a `config.json` also as its own when it says what the new one will.
void require_own_model_files(const std::string& directory, const std::string& config_text);

/// The same of a `config.json` alone. `beside_own`: whether data files of this program lie beside it.
void require_own_config(const std::string& directory, const std::string& config_text, bool beside_own);

}  // namespace weightcast
