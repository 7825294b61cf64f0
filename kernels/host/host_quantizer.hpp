#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/executor.hpp"

namespace weightcast {

/// A number of bytes, as the standard library takes it.
inline std::size_t size(std::int64_t bytes) {
  return static_cast<std::size_t>(bytes);
}

/// Executor::quantize and Executor::find_largest on one thread of the host.
void quantize_on_host(std::span<const QuantMove> program, const QuantBuffers& buffers,
                      std::span<const GlobalScale> globals, std::span<QuantDigests> digests);
void find_largest_on_host(std::span<const QuantMove> program, const QuantBuffers& buffers,
                          std::span<float> largest);

}  // namespace weightcast
