#pragma once

#include <cstdint>
#include <string>

#include "core/shape.hpp"

namespace weightcast {

/// Where a canonical tensor lies inside a larger stored one: its rows begin at `row` of the stored matrix
/// view.
struct StoredForm {
  std::string name;
  Shape shape;
  std::int64_t row = 0;
};

}  // namespace weightcast
