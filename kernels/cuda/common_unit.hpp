#pragma once

#include <bit>
#include <cstdint>
#include <initializer_list>

#include "core/matrix_layout.hpp"

namespace weightcast {

/// The widest vector (1 to 16 bytes) that an address and some distances are all multiples of.
inline std::uint32_t common_unit(std::uint64_t address, std::initializer_list<std::int64_t> distances) {
  std::uint64_t all = address | 16u;
  for (const std::int64_t distance : distances) all |= static_cast<std::uint64_t>(distance);
  return 1u << std::countr_zero(all);
}

inline std::uint32_t common_unit(const void* address, std::initializer_list<std::int64_t> distances) {
  return common_unit(static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(address)), distances);
}

/// Steps and units of a layout, for common_unit().
inline std::int64_t all_steps(const MatrixLayout& layout) {
  std::int64_t all = layout.step[0] | layout.step[1] | layout.step[2] | layout.step[3] | layout.unit_step;
  if (layout.unit_step != 0) all |= layout.unit_bytes();
  return all;
}

}  // namespace weightcast
