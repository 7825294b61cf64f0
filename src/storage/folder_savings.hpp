#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "storage/safetensors_index.hpp"

// A folder holds one saving of a model, or nobody can say what it holds. All throw IoError when a folder
// cannot be listed.
namespace weightcast {

/// The files of a folder for whose names `wanted` holds, sorted, with the folder.
std::vector<std::string> files_in(const std::string& directory,
                                  const std::function<bool(const std::filesystem::path&)>& wanted);

/// The first file of a folder, which may be missing, that a reader would take for a model's safetensors, or
/// for HDF5 or an inference rank's shard: its path, or empty.
std::string safetensors_in(const std::string& directory);
std::string hdf5_or_shard_in(const std::string& directory);

/// Throws InputError for a folder in which some files have been replaced and others were to be: it holds
/// neither the old checkpoint nor the new one, for a job is at it, or was killed in the middle.
void require_finished(const std::string& directory);

/// Without an index nobody says which files belong together. Throws InputError when they are of several
/// savings, in different numbers of files.
void require_one_saving(const std::string& directory, const std::vector<std::string>& files);

/// Throws InputError for a single file beside an index that does not name it: some readers take the one, some
/// the other.
void require_no_other_saving(const SafetensorsIndex& index, const std::filesystem::path& directory);

}  // namespace weightcast
