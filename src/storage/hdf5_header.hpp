#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "storage/checkpoint.hpp"

namespace weightcast {

/// Whether the file has HDF5's signature. Throws IoError when it cannot be read.
bool has_hdf5_signature(const std::string& path);

/// Reads what an HDF5 file holds, groups included: adds the file to the checkpoint, appends its datasets, and
/// returns the attribute `weightcast.weight_version` if there is one. A dataset in groups has the names of
/// its path with dots between them: `model/norm/weight` is `model.norm.weight`. One whose bytes lie in a file
/// as the program wants them gets that file and its offset; every other is read through the library, or has
/// an obstacle. Files that hold data of this one are added where `other_files` allows them. Throws IoError
/// when the file cannot be read, InputError naming file and dataset when its content is wrong.
std::optional<std::int64_t> read_hdf5_header(const std::string& path, Checkpoint& checkpoint,
                                             OtherFiles other_files);

}  // namespace weightcast
