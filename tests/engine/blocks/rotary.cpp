#include "engine/blocks/rotary.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/float_bits.hpp"

namespace weightcast::engine {

namespace {

/// The number, not whole, of the pair that turns `turns` times within the positions that were learned.
double pair_of(double turns, const ModelConfig& config) {
  const double positions = config.yarn.learned_positions / (turns * 2 * std::numbers::pi);
  return static_cast<double>(config.rotary_dim) * std::log(positions) / (2 * std::log(config.rope_theta));
}

/// By how much YaRN slows each pair: not at all, by its factor, or in between by a ramp of the two speeds.
std::vector<double> slowing(const ModelConfig& config) {
  const Yarn& yarn = config.yarn;
  double low = pair_of(yarn.fast_turns, config);
  double high = pair_of(yarn.slow_turns, config);
  if (yarn.whole_pairs) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.rotary_dim - 1));
  if (low == high) high += 0.001;
  std::vector<double> factors;
  for (std::int64_t pair = 0; pair < config.rotary_dim / 2; ++pair) {
    const double slowed = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
    factors.push_back(slowed / yarn.factor + 1 - slowed);
  }
  return factors;
}

}  // namespace

Rotary::Rotary(const ModelConfig& config)
    : scale_(static_cast<float>(config.yarn.scale)), neighbours_(config.rotary_neighbours) {
  const auto pairs = static_cast<std::size_t>(config.rotary_dim / 2);
  const std::vector<double> factors =
      config.yarn.factor > 1 ? slowing(config) : std::vector<double>(pairs, 1.0);
  for (std::size_t i = 0; i < pairs; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim);
    const auto frequency = static_cast<float>(factors[i] / std::pow(config.rope_theta, exponent));
    frequencies_.push_back(config.bf16_frequencies ? bf16_value(bf16_bits(frequency)) : frequency);
  }
}

void Rotary::turn(std::span<float> head, std::int64_t position) const {
  const std::size_t pairs = frequencies_.size();
  for (std::size_t i = 0; i < pairs; ++i) {
    const float angle = static_cast<float>(position) * frequencies_[i];
    const float cosine = scale_ * std::cos(angle);
    const float sine = scale_ * std::sin(angle);
    float& first = head[neighbours_ ? 2 * i : i];
    float& second = head[neighbours_ ? 2 * i + 1 : i + pairs];
    const float a = first;
    const float b = second;
    first = a * cosine - b * sine;
    second = b * cosine + a * sine;
  }
}

}  // namespace weightcast::engine
