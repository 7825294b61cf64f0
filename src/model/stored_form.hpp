#pragma once

#include <cstdint>
#include <string>

#include "core/shape.hpp"

namespace weightcast {

/// Where a canonical tensor lies inside a larger stored one: its rows begin at `row` of the stored matrix
/// view. Under the tensor's own name: the same elements in the same order, under other extents.
struct StoredForm {
  std::string name;
  Shape shape;
  std::int64_t row = 0;
};

}  // namespace weightcast
