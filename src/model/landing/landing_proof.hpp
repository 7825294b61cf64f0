#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "model/landing/landing_map.hpp"

namespace weightcast {

/// What one rank does with each tensor of a map: just one of reading it, giving it to the engine's loader and
/// skipping it.
class TensorReading {
 public:
  explicit TensorReading(std::size_t tensors) : done_(tensors, 0) {}

  void read(std::uint32_t tensor) { done_[tensor] |= kRead; }
  void load(std::uint32_t tensor) { done_[tensor] |= kLoaded; }
  void skip(std::uint32_t tensor) { done_[tensor] |= kSkipped; }

  /// Throws InputError that begins with `where` and names the first tensor of which the rank says none of
  /// these, or two.
  void require_all(const LandingMap& map, const std::string& where) const;

 private:
  static constexpr std::uint8_t kRead = 1;
  static constexpr std::uint8_t kLoaded = 2;
  static constexpr std::uint8_t kSkipped = 4;

  std::vector<std::uint8_t> done_;
};

/// Throws InputError that begins with `where` unless every box of a parameter lies within its tensor and the
/// parameter, every element of it is in just one of them (a loaded parameter has none), and values need no
/// conversion that is not done.
void prove_landing(const LandedParameter& parameter, const LandingMap& map, const std::string& where);

/// Finds out for every tensor of a map what all its ranks do with it; a loader reads all of it, as it is
/// stored. Throws InputError naming a tensor that is read as two types, or one that is cut into more pieces
/// than can be planned.
void sum_up_reading(LandingMap& map);

}  // namespace weightcast
