#include "model/layouts/moe_layout.hpp"
#include "model/layouts/row_shuffle.hpp"
#include "model/layouts/scale_swizzle.hpp"

namespace weightcast {

namespace {

/// Rows of gate lie this many behind those of up: 8 even rows of up, 8 of gate, 8 odd ones of up, 8 of gate.
constexpr std::int64_t kGateBehindUp = 8;

/// MajorK: rows lie as they are, in another order.
SlabLayout shuffled_w13(const PlaneMatrix& half) {
  const std::int64_t row_bytes = half.cols * half.element;
  SlabLayout slab = up_first(half);
  slab.layout = shuffled_gated_rows(row_bytes);
  slab.gate = kGateBehindUp * row_bytes;
  return slab;
}

SlabLayout shuffled_w2(const PlaneMatrix& matrix) {
  SlabLayout slab = row_major(matrix);
  slab.layout = shuffled_rows(matrix.cols * matrix.element);
  return slab;
}

/// BlockMajorK: within blocks of K.
SlabLayout blocked_w13(const PlaneMatrix& half) {
  SlabLayout slab = k_blocks(shuffled_gated_rows(kKBlockBytes), half, 2 * half.rows);
  slab.gate = kGateBehindUp * kKBlockBytes;
  return slab;
}

SlabLayout blocked_w2(const PlaneMatrix& matrix) {
  return k_blocks(shuffled_rows(kKBlockBytes), matrix, matrix.rows);
}

/// Scales in the shuffled order of rows, and then in tiles. With n the shuffled row the place in a tile is
/// (n%32) · kTileRow + ((n%128)/32) · kTileQuarter. Of row i of up, n%32 = 16·(i%2) + (i%16)/2 and
/// n/32 = i/16; of row o of down, n%32 = 8·(o%4) + (o%32)/4 and n/32 = o/32.
SlabLayout shuffled_w13_scales(const PlaneMatrix& half) {
  return swizzled_interleaved(half, {{1, 16 * kTileRow}, {3, kTileRow}, {2, kTileQuarter}},
                              kGateBehindUp * kTileRow);
}

SlabLayout shuffled_w2_scales(const PlaneMatrix& matrix) {
  return swizzled_in_order(matrix, {{2, 8 * kTileRow}, {3, kTileRow}, {2, kTileQuarter}});
}

/// FlashInfer's TRT-LLM-gen fused MoE.
///
///   scheme       w13 rows                   weights        scales
///   – (bf16)     up and gate interleaved,   BlockMajorK    –
///                blocks of 32 shuffled
///   fp8-tensor   as above                   MajorK         –
///   fp8-block    [up ; gate]                MajorK         [up ; gate], rows of blocks
///   mxfp8        as bf16                    MajorK         in the order of w13's rows, tiles of 128 × 4
///   nvfp4        as bf16                    MajorK         as mxfp8
///   mxfp4        as bf16                    MajorK         as mxfp8
///
/// w2 is not interleaved, otherwise as w13. All have the inner size of a rank padded to 128, with zeros.
/// (FlashInfer's reorder_rows_for_gated_act_gemm, shuffle_matrix_a, shuffle_matrix_sf_a and
/// convert_to_block_layout; SGLang's choice of them and its padding.)
class TrtllmLayout final : public MoeLayout {
 public:
  std::string name() const override { return "trtllm"; }

  TakenWeights takes() const override {
    using enum QuantScheme;
    return {.only_bf16 = true, .schemes = {kFp8Block, kFp8Tensor, kMxfp8, kNvfp4, kMxfp4}};
  }

  std::vector<SizeRule> rules(const ExpertForm& form) const override {
    using enum SizeRule::Size;
    if (!form.quantizer) return {{kHidden, 64, "blocks of K"}};
    switch (form.quantizer->scheme) {
      case QuantScheme::kFp8Tensor:
        return {{kHidden, 32, "rows of w2 are shuffled in blocks of 32"}};
      case QuantScheme::kFp8Block:
        return {{kHidden, 128, "blocks of 128 rows or columns share a scale"}};
      default:
        // The parts of ranks begin at multiples of 128, so only the matrix itself could cut a block.
        return {{kHidden, 128, "scales lie in tiles of 128 rows"},
                {kInner, block_cols(form.quantizer->scheme), "elements that share a scale stay together"}};
    }
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& quantizer) const override {
    // What the launcher of the kernels asks for.
    constexpr std::int64_t kInnerUnit = 128;
    if (!quantizer) return {.w13 = blocked_w13, .w2 = blocked_w2, .inner_unit = kInnerUnit};
    if (quantizer->scheme == QuantScheme::kFp8Block) {
      return {up_first, row_major, up_first, row_major, kInnerUnit};
    }
    ExpertMatrices matrices{shuffled_w13, shuffled_w2, shuffled_w13_scales, shuffled_w2_scales, kInnerUnit};
    // As SGLang's quantisation methods call them.
    if (quantizer->scheme == QuantScheme::kNvfp4) {
      matrices.scalars = {".g1_alphas", ".g1_scale_c", ".g2_alphas"};
    } else if (quantizer->scheme == QuantScheme::kFp8Tensor) {
      matrices.scalars = {".output1_scales_gate_scalar", ".output1_scales_scalar", ".output2_scales_scalar"};
    }
    return matrices;
  }
};

}  // namespace

const MoeLayout& trtllm_moe_layout() {
  static const TrtllmLayout layout;
  return layout;
}

}  // namespace weightcast
