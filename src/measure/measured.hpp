#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace weightcast {

/// One thing that is measured several times in a run.
struct Measured {
  std::string what;
  std::vector<double> seconds;
  std::int64_t bytes = 0;

  /// Throws InternalError when it was not measured.
  double median_seconds() const {
    if (seconds.empty()) throw InternalError(what + ": asked for though it was not measured");
    std::vector<double> values = seconds;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }
  double gb_s() const { return static_cast<double>(bytes) / median_seconds() / 1e9; }
};

/// Throws InternalError when there is none.
inline const Measured& fastest(const std::vector<Measured>& measured) {
  if (measured.empty()) throw InternalError("the fastest of nothing was asked for");
  return *std::max_element(measured.begin(), measured.end(),
                           [](const Measured& a, const Measured& b) { return a.gb_s() < b.gb_s(); });
}

}  // namespace weightcast
