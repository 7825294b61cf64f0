#include "model/layouts/moe_layout.hpp"
#include "model/layouts/packed_scales.hpp"

namespace weightcast {

namespace {

/// Groups of this many rows of gate and of up take turns.
constexpr std::int64_t kMegaTurn = 8;

/// Row i of gate goes to 16·(i/8) + i%8, of up 8 behind it.
SlabLayout in_turns_of_8(const PlaneMatrix& half) {
  const std::int64_t row_bytes = half.cols * half.element;
  SlabLayout slab = gate_first(half);
  slab.layout = row_digits({{3, row_bytes}}, 2 * kMegaTurn * row_bytes);
  slab.up = kMegaTurn * row_bytes;
  return slab;
}

// Scales go where the interleaved rows are, and then row n of each 128 to 4·(n%32) + n/32, as the copy to
// tensor memory wants them.

/// Of row i of gate n = 16·(i/8) + i%8, so n%32 = 16·((i/8)%2) + i%8 and n/32 = i/16.
SlabLayout scales_in_turns_of_8(const PlaneMatrix& half) {
  constexpr std::int64_t kWord = kScaleWord;
  SlabLayout slab =
      packed_scales(half, 2 * half.rows, {{3, 4 * kWord}, {1, 64 * kWord}, {2, kWord}}, 128 * kWord);
  slab.up = kMegaTurn * 4 * kWord;
  return slab;
}

SlabLayout transposed_scales(const PlaneMatrix& matrix) {
  constexpr std::int64_t kWord = kScaleWord;
  return packed_scales(matrix, matrix.rows, {{5, 4 * kWord}, {2, kWord}}, 128 * kWord);
}

/// DeepGEMM's mega-MoE (SM100): w13 with rows of gate and up in turns of 8, w2 as it is. Its kernels take
/// bf16, and fp4 with an exponent byte for each 32 of a row; those bytes are packed as deepgemm packs its
/// own: float8_e8m0fnu [El, ⌈K/128⌉, N, 4]. (deep_gemm/mega: _interleave_weights, _transpose_sf_for_utccp,
/// transform_weights_for_mega_moe.)
class DeepGemmMegaLayout final : public MoeLayout {
 public:
  std::string name() const override { return "deepgemm-mega"; }

  TakenWeights takes() const override { return {.schemes = {QuantScheme::kMxfp4}}; }

  std::vector<SizeRule> rules(const ExpertForm& form) const override {
    using enum SizeRule::Size;
    std::vector<SizeRule> rules;
    if (form.quantizer) {
      rules.push_back({kInnerShare, 64, "scales of w13 are reordered in blocks of 128 rows"});
      rules.push_back({kHidden, 128, "scales of w2 are reordered in blocks of 128 rows"});
    }
    rules.push_back({kInnerShare, kMegaTurn, "rows of gate and up take turns of 8"});
    for (const SizeRule& rule : whole_loads(form)) rules.push_back(rule);
    return rules;
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& /*quantizer*/) const override {
    return {in_turns_of_8, row_major, scales_in_turns_of_8, transposed_scales};
  }
};

}  // namespace

const MoeLayout& deepgemm_mega_moe_layout() {
  static const DeepGemmMegaLayout layout;
  return layout;
}

}  // namespace weightcast
