#include "model/layouts/moe_layout.hpp"
#include "model/layouts/row_digits.hpp"
#include "model/layouts/scale_swizzle.hpp"

namespace weightcast {

namespace {

/// Groups of this many rows of up and of gate take turns.
constexpr std::int64_t kTurn = 64;

/// Row i of up goes to 128·(i/64) + i%64, of gate 64 behind it.
SlabLayout in_turns_of_64(const PlaneMatrix& half) {
  const std::int64_t row_bytes = half.cols * half.element;
  SlabLayout slab = up_first(half);
  slab.layout = row_digits({{6, row_bytes}}, 2 * kTurn * row_bytes);
  slab.gate = kTurn * row_bytes;
  return slab;
}

/// Of row i of up the interleaved row n has n%32 = i%32, (n%128)/32 = (i/32)%2 and n/128 = i/64; that of gate
/// has (n%128)/32 greater by 2.
SlabLayout scales_in_turns_of_64(const PlaneMatrix& half) {
  return swizzled_interleaved(half, {{5, kTileRow}, {1, kTileQuarter}}, 2 * kTileQuarter);
}

/// FlashInfer's CuTe-DSL fused MoE for nvfp4: codes of w13 with rows of up and gate in turns of 64, of w2 as
/// they are; scales of both in tiles of 128 × 4 over those rows. (FlashInfer's interleave_linear_and_gate
/// with groups of 64, and block_scale_interleave.)
class CuteDslLayout final : public MoeLayout {
 public:
  std::string name() const override { return "cute-dsl"; }

  TakenWeights takes() const override { return {.values = false, .schemes = {QuantScheme::kNvfp4}}; }

  std::vector<SizeRule> rules(const ExpertForm& /*form*/) const override {
    using enum SizeRule::Size;
    // The kernels view the scales as whole tiles.
    return {{kInnerShare, kTurn, "rows of up and gate take turns of 64"},
            {kHidden, 128, "scales lie in tiles of 128 rows"}};
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& /*quantizer*/) const override {
    return {in_turns_of_64, row_major, scales_in_turns_of_64, swizzled};
  }
};

}  // namespace

const MoeLayout& cute_dsl_moe_layout() {
  static const CuteDslLayout layout;
  return layout;
}

}  // namespace weightcast
