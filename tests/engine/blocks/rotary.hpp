#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model_config.hpp"

namespace weightcast::engine {

/// The rotary embedding: turns pairs of elements by an angle that grows with the token's position.
class Rotary {
 public:
  explicit Rotary(const ModelConfig& config);

  /// Turns the first `rotary_dim` elements of a head: element i with element i + rotary_dim / 2, or
  /// neighbours where the config says so; and scales them as YaRN does.
  void turn(std::span<float> head, std::int64_t position) const;

 private:
  std::vector<float> frequencies_;  ///< one for each pair
  float scale_;
  bool neighbours_;
};

}  // namespace weightcast::engine
