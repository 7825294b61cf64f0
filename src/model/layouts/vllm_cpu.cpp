#include "model/layouts/moe_layout.hpp"
#include "model/layouts/row_digits.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kBlock = 16;      // rows
constexpr std::int64_t kAlignment = 32;  // of both sizes

/// Rows in blocks of 16; in a block, column by column: element (r, c) at position
/// (r / 16) × 16·cols + c × 16 + r % 16.
SlabLayout in_blocks(const PlaneMatrix& matrix) {
  SlabLayout slab = row_major(matrix);
  const std::uint8_t bits = matrix.element == 4 ? 2 : 1;
  slab.layout = in_units(row_digits({{4, matrix.element}}, kBlock * matrix.cols * matrix.element), bits,
                         kBlock * matrix.element);
  return slab;
}

/// Halves of whole blocks, so that up's follow gate's.
SlabLayout gate_first_in_blocks(const PlaneMatrix& half) {
  SlabLayout slab = gate_first(half);
  slab.layout = in_blocks(half).layout;
  return slab;
}

/// Where vLLM's experts on a CPU read their weights: [gate ; up] and down, each matrix [N, K] packed as
/// [N/16][K][16], under the shape that it had before. A rank's part of the inner size is padded to a multiple
/// of 32. (vLLM 0.32 `CPUUnquantizedExperts`, instruction set `vec`; AMX packs otherwise.)
class VllmCpuLayout final : public MoeLayout {
 public:
  std::string name() const override { return "vllm-cpu"; }

  TakenWeights takes() const override { return {}; }

  std::vector<SizeRule> rules(const ExpertForm& /*form*/) const override {
    return {{SizeRule::Size::kHidden, kAlignment, "blocks of rows"}};
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& /*quantizer*/) const override {
    return {.w13 = gate_first_in_blocks, .w2 = in_blocks, .inner_unit = kAlignment, .padded_after_cut = true};
  }
};

}  // namespace

const MoeLayout& vllm_cpu_moe_layout() {
  static const VllmCpuLayout layout;
  return layout;
}

}  // namespace weightcast
