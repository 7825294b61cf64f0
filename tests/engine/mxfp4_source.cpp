#include "engine/mxfp4_source.hpp"

#include <array>
#include <cmath>

#include "core/units.hpp"

namespace weightcast::engine {
namespace {

constexpr std::int64_t kGroup = 32;  // elements that share a scale
constexpr int kExponentOfOne = 127;

float value_of(int code, int exponent) {
  constexpr std::array<float, 8> kMagnitudes = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  const float magnitude =
      std::ldexp(kMagnitudes.at(static_cast<std::size_t>(code % 8)), exponent - kExponentOfOne);
  return code < 8 ? magnitude : -magnitude;
}

/// Where a scale lies in tiles of 128 rows and 4 columns.
std::int64_t in_tiles(std::int64_t row, std::int64_t col, std::int64_t cols) {
  const std::int64_t tile = row / 128 * ((cols + 3) / 4) + col / 4;
  return tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + col % 4;
}

}  // namespace

Mxfp4Source::Mxfp4Source(const ParameterSource& source, const ModelConfig& config, const RankLayout& layout,
                         bool shuffled)
    : source_(source),
      config_(config),
      inner_(round_up(divide(config.expert_width, layout.tp_size / layout.ep_size, "rows of an expert"),
                      layout.inner_unit)),
      shuffled_(shuffled) {}

std::vector<std::string> Mxfp4Source::names() const {
  std::vector<std::string> names = source_.names();
  std::erase_if(names, [](const std::string& name) { return name.ends_with("_weight_scale"); });
  return names;
}

Tensor Mxfp4Source::read(const std::string& name) const {
  if (name.ends_with(".w13_weight")) return read_values(name, 2 * inner_, config_.hidden, true);
  if (name.ends_with(".w2_weight")) return read_values(name, config_.hidden, inner_, false);
  if (name.ends_with(".w13_weight_bias")) return read_bias(name, 2 * inner_, true);
  if (name.ends_with(".w2_weight_bias")) return read_bias(name, config_.hidden, false);
  return source_.read(name);
}

Tensor Mxfp4Source::read_values(const std::string& name, std::int64_t rows, std::int64_t cols,
                                bool in_turn) const {
  const Tensor codes = source_.read(name);
  const Tensor scales = source_.read(name + "_scale");
  Tensor values{Shape{codes.shape[0], rows, cols}, {}};
  for (std::int64_t expert = 0; expert < codes.shape[0]; ++expert) {
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t from = stored_row(row, in_turn);
      for (std::int64_t col = 0; col < cols; ++col) {
        const std::int64_t byte = (expert * codes.shape[1] + from) * codes.shape[2] + col / 2;
        const std::int64_t group = col / kGroup;
        const std::int64_t place =
            shuffled_ ? in_tiles(from, group, scales.shape[2]) : from * scales.shape[2] + group;
        const std::int64_t scale = expert * scales.shape[1] * scales.shape[2] + place;
        const auto both = static_cast<int>(codes.values.at(static_cast<std::size_t>(byte)));
        values.values.push_back(
            value_of(col % 2 == 0 ? both % 16 : both / 16,
                     static_cast<int>(scales.values.at(static_cast<std::size_t>(scale)))));
      }
    }
  }
  return values;
}

Tensor Mxfp4Source::read_bias(const std::string& name, std::int64_t rows, bool in_turn) const {
  const Tensor stored = source_.read(name);
  Tensor values{Shape{stored.shape[0], rows}, {}};
  for (std::int64_t expert = 0; expert < stored.shape[0]; ++expert) {
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t from = expert * stored.shape[1] + stored_row(row, in_turn);
      values.values.push_back(stored.values.at(static_cast<std::size_t>(from)));
    }
  }
  return values;
}

/// Rows of gate and up in turn change places in pairs before all are shuffled.
std::int64_t Mxfp4Source::stored_row(std::int64_t row, bool in_turn) const {
  if (!shuffled_) return row;
  const std::int64_t paired = in_turn ? row ^ 1 : row;
  return paired / 32 * 32 + paired % 4 * 8 + paired % 32 / 4;
}

}  // namespace weightcast::engine
