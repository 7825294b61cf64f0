#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "model/catalog.hpp"

namespace weightcast {

/// The value of a synthetic element from its mixed index: a multiple of 2^-20 below 2^-5, so in half
/// precision normal or subnormal, never infinite.
constexpr float synthetic_value(std::uint64_t mixed) {
  return static_cast<float>(static_cast<std::int64_t>(mixed >> 48) - 32768) * 0x1p-20f;
}

/// What is added to the index of a tensor's elements before they are mixed.
std::uint64_t synthetic_seed(const Tensor& tensor, std::int64_t version);

/// Deterministic weights for `synth` and `bench`: element i (row-major) of a tensor is
/// `((mix(seed + i) >> 48) − 32768) / 2^20`, so in [−1/32, 1/32), rounded to nearest even into the tensor's
/// dtype. `seed` is the XXH3-64 hash of the tensor's name plus `version × 0x9e3779b97f4a7c15`; `mix` is the
/// finaliser of splitmix64. Integers and 8-bit types take the low bytes of mix instead.
void fill_synthetic(const Tensor& tensor, std::int64_t version, std::int64_t first_element,
                    std::span<std::byte> to);

}  // namespace weightcast
