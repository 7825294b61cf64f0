#include "engine/blocks/rotary.hpp"

#include <cmath>

#include "core/float_bits.hpp"

namespace weightcast::engine {

Rotary::Rotary(const ModelConfig& config) : neighbours_(config.rotary_neighbours) {
  for (std::int64_t i = 0; i < config.rotary_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim);
    const auto frequency = static_cast<float>(1.0 / std::pow(config.rope_theta, exponent));
    frequencies_.push_back(config.bf16_frequencies ? bf16_value(bf16_bits(frequency)) : frequency);
  }
}

void Rotary::turn(std::span<float> head, std::int64_t position) const {
  const std::size_t pairs = frequencies_.size();
  for (std::size_t i = 0; i < pairs; ++i) {
    const float angle = static_cast<float>(position) * frequencies_[i];
    const float cosine = std::cos(angle);
    const float sine = std::sin(angle);
    float& first = head[neighbours_ ? 2 * i : i];
    float& second = head[neighbours_ ? 2 * i + 1 : i + pairs];
    const float a = first;
    const float b = second;
    first = a * cosine - b * sine;
    second = b * cosine + a * sine;
  }
}

}  // namespace weightcast::engine
