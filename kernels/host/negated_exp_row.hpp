#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

/// Writes −e^x (core/negated_exp.hpp) as float32 for each of `count` elements: float32 where `element_bytes`
/// is 4, bfloat16 where it is 2.
void negated_exp_row(const std::byte* from, std::int64_t element_bytes, std::byte* to, std::int64_t count);

}  // namespace weightcast
