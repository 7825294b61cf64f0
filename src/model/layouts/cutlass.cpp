#include "model/layouts/moe_layout.hpp"
#include "model/layouts/scale_swizzle.hpp"

namespace weightcast {

namespace {

/// Scales of one byte are what tensor cores read themselves.
bool swizzles_scales(const Quantizer& quantizer) {
  return block_scale_bytes(quantizer.scheme) == 1;
}

/// FlashInfer's CUTLASS fused MoE: the shapes of the Triton layout with up before gate (the kernel's first
/// half is the linear one, its second half is gated). Codes and scales in fp32 lie likewise; scales of one
/// byte lie in tiles of 128 × 4 over each expert's [up ; gate], and over its down.
///
///   scheme                   w13_weight          scales                          rules
///   –, fp8-tensor, -channel  [El, 2·It, H]       –, –, [El, 2·It, 1]             It, H: 16 bytes
///   fp8-block                [El, 2·It, H]       [El, 2·It/128, ⌈H/128⌉]         It: 128
///   mxfp8                    [El, 2·It, H]       [El, 2·It, up(H/32,4)]          It: 128
///   mxfp4                    [El, 2·It, H/2]     [El, 2·It, H/32]                It, H: 128
///   nvfp4                    [El, 2·It, H/2]     [El, 2·It, up(H/16,4)]          It: 128
///
/// It must be a multiple of 128 where up's scales have to end with a tile. (vLLM and SGLang pad nothing for
/// gated experts either.)
class CutlassLayout final : public MoeLayout {
 public:
  std::string name() const override { return "cutlass"; }

  TakenWeights takes() const override {
    using enum QuantScheme;
    return {.schemes = {kFp8Block, kFp8Tensor, kFp8Channel, kMxfp8, kNvfp4, kMxfp4}};
  }

  std::vector<SizeRule> rules(const ExpertForm& form) const override {
    using enum SizeRule::Size;
    if (!form.quantizer) return whole_loads(form);
    // The strictest rule first: it is the one that people should hear of.
    std::vector<SizeRule> rules;
    if (swizzles_scales(*form.quantizer)) {
      constexpr const char* kTiles = "scales lie in tiles of 128 rows";
      rules.push_back({kInnerShare, 128, kTiles});
      if (form.quantizer->scheme == QuantScheme::kMxfp4) rules.push_back({kHidden, 128, kTiles});
    }
    for (const SizeRule& rule : whole_blocks(*form.quantizer)) rules.push_back(rule);
    for (const SizeRule& rule : whole_loads(form)) rules.push_back(rule);
    return rules;
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& quantizer) const override {
    if (quantizer && swizzles_scales(*quantizer)) return {up_first, row_major, swizzled_up_first, swizzled};
    return {up_first, row_major, up_first, row_major};
  }
};

}  // namespace

const MoeLayout& cutlass_moe_layout() {
  static const CutlassLayout layout;
  return layout;
}

}  // namespace weightcast
