#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/layout.hpp"
#include "engine/model_config.hpp"
#include "engine/parameters.hpp"

namespace weightcast::engine {

/// gpt-oss's parameters whose experts are codes of four bits and exponents of their scales, each byte as a
/// number, read as the values that they stand for: w13 [El, 2·inner, H], w2 [El, H, inner] and biases to fit,
/// without what pads them. A rank's part of the inner size is a multiple of 32 (`layout.inner_unit`).
class Mxfp4Source : public ParameterSource {
 public:
  /// `source` and `config` must outlive it. `shuffled`: rows and scales lie as in layout `trtllm`.
  Mxfp4Source(const ParameterSource& source, const ModelConfig& config, const RankLayout& layout,
              bool shuffled);

  std::vector<std::string> names() const override;
  Tensor read(const std::string& name) const override;

 private:
  Tensor read_values(const std::string& name, std::int64_t rows, std::int64_t cols, bool in_turn) const;
  Tensor read_bias(const std::string& name, std::int64_t rows, bool in_turn) const;
  std::int64_t stored_row(std::int64_t row, bool in_turn) const;

  const ParameterSource& source_;
  const ModelConfig& config_;
  std::int64_t inner_;
  bool shuffled_;
};

}  // namespace weightcast::engine
