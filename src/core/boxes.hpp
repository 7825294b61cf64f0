#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "core/shape.hpp"

namespace weightcast {

/// Two of the boxes that share an element, or nothing. None of them may be empty; sums of their numbers must
/// not overflow. n log n of their number.
std::optional<std::pair<Box, Box>> find_overlap(std::vector<Box> boxes);

/// The first element of `whole`, row by row, that none of the boxes has, as a box of one element; nothing
/// when they have all. As above; they must lie within `whole` and share no element.
std::optional<Box> find_gap(const Box& whole, std::vector<Box> boxes);

}  // namespace weightcast
