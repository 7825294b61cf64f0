#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "model/catalog.hpp"

namespace weightcast {

/// fill_synthetic (model/synthetic.hpp) into device memory: elements [first_element, first_element +
/// elements) of the tensor, in the order of the stream.
void fill_synthetic_on_device(const Tensor& tensor, std::int64_t version, std::int64_t first_element,
                              std::int64_t elements, std::byte* to, cudaStream_t stream);

}  // namespace weightcast
