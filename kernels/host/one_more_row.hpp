#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

/// Writes 1 more than each of `count` elements (core/one_more.hpp), in their type: bfloat16 where
/// `element_bytes` is 2, float32 where it is 4. No alignment is needed; `to` may be `from`.
void one_more_row(const std::byte* from, std::int64_t element_bytes, std::byte* to, std::int64_t count);

}  // namespace weightcast
