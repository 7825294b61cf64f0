#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "storage/checkpoint.hpp"

namespace weightcast {

/// Whether the file has HDF5's signature. Throws IoError when it cannot be read.
bool has_hdf5_signature(const std::string& path);

/// Reads what an HDF5 file's root says: appends its datasets, marked with file number `file`, and returns the
/// attribute `weightcast.weight_version` if there is one. A dataset whose bytes lie in the file as the
/// program wants them gets its offset, every other StoredTensor::kThroughLibrary. Groups are passed over.
/// Throws IoError when the file cannot be read, InputError naming file and dataset when its content is wrong.
std::optional<std::int64_t> read_hdf5_header(const std::string& path, std::uint32_t file,
                                             std::vector<StoredTensor>& tensors);

}  // namespace weightcast
