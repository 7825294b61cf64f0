#pragma once

#include <string>

#include "storage/checkpoint.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {

/// What a dataset holds, apart from its name and from where its bytes are.
struct DatasetForm {
  StoredTensor tensor;         ///< its dtype and shape, or an obstacle
  bool little_endian = false;  ///< its bytes are as this program wants them
};

/// Reads type, shape and the attribute `weightcast.dtype` of a dataset, under an Hdf5Lock. `subject` is what
/// to call it in messages. Throws InputError when they contradict one another.
DatasetForm describe_dataset(hid_t dataset, const std::string& subject);

}  // namespace weightcast
