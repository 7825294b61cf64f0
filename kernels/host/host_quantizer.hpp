#pragma once

#include <span>

#include "kernels/executor.hpp"

namespace weightcast {

/// Executor::quantize and Executor::find_largest on one thread of the host.
void quantize_on_host(std::span<const QuantMove> program, const QuantBuffers& buffers,
                      std::span<const GlobalScale> globals, std::span<QuantDigests> digests);
void find_largest_on_host(std::span<const QuantMove> program, const QuantBuffers& buffers,
                          std::span<float> largest);

}  // namespace weightcast
