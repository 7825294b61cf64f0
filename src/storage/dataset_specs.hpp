#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "storage/writer.hpp"

namespace weightcast {

/// Total bytes of the datasets. Throws InputError naming the file and the dataset when a name is empty,
/// occurs twice, holds a zero byte (at which HDF5 would cut it) or is far too long, or sizes are negative or
/// overflow.
std::int64_t check_dataset_specs(const std::string& path, const std::vector<DatasetSpec>& datasets);

/// Throws InternalError when `bytes` from `offset` on are not inside dataset number `index`.
void check_write_range(const std::string& path, const std::vector<DatasetSpec>& datasets, std::size_t index,
                       std::int64_t offset, std::size_t bytes);

}  // namespace weightcast
