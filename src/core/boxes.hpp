#pragma once

#include <cstdint>
#include <optional>
#include <string>
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

/// How many elements some of the boxes has. Nothing when to cut along all their edges, as a plan does, and to
/// look for each box in each cell is more than what is left of `work`. As above; sorts the boxes, and leaves
/// each there once.
std::optional<std::int64_t> covered_area(std::vector<Box>& boxes, double& work);

/// Whether a box that is not empty lies within a shape's matrix view, whatever its numbers from 0 on are.
bool lies_within(const Box& box, const Shape& shape);

/// A box of any numbers from 0 on: `2 rows from 3 on, 4 columns from 0 on`
std::string text_of_extents(const Box& box);

}  // namespace weightcast
