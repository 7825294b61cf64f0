#include "model/layouts/moe_layout.hpp"
#include "model/layouts/row_shuffle.hpp"

namespace weightcast {

namespace {

/// Halves of whole blocks of 16 rows, so that gate's shuffled rows follow up's.
SlabLayout blocked_up_first(const PlaneMatrix& half) {
  SlabLayout slab = k_blocks(shuffled_rows_of_16(kKBlockBytes), half, 2 * half.rows);
  slab.gate = half.rows * kKBlockBytes;
  return slab;
}

SlabLayout blocked(const PlaneMatrix& matrix) {
  return k_blocks(shuffled_rows_of_16(kKBlockBytes), matrix, matrix.rows);
}

/// The other form that TRT-LLM-gen kernels take of fp8-block: rows of [up ; gate] and of down shuffled in
/// blocks of 16, in blocks of 128 columns (BlockMajorK); scales stay as they were. The activation is no part
/// of the matrix product there, so gate and up are not interleaved. Padded as trtllm is. (vLLM; FlashInfer's
/// shuffle_matrix_a with an epilogue tile of 64, convert_to_block_layout.)
class TrtllmShuffledLayout final : public MoeLayout {
 public:
  std::string name() const override { return "trtllm-shuffled"; }

  TakenWeights takes() const override { return {.values = false, .schemes = {QuantScheme::kFp8Block}}; }

  std::vector<SizeRule> rules(const ExpertForm& /*form*/) const override {
    return {{SizeRule::Size::kHidden, 128, "blocks of K"}};
  }

  ExpertMatrices matrices(const std::optional<Quantizer>& /*quantizer*/) const override {
    return {blocked_up_first, blocked, up_first, row_major, 128};
  }
};

}  // namespace

const MoeLayout& trtllm_shuffled_moe_layout() {
  static const TrtllmShuffledLayout layout;
  return layout;
}

}  // namespace weightcast
