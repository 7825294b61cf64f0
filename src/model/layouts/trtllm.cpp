#include "model/layouts/trtllm.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/units.hpp"

namespace weightcast {

namespace {

// K is cut into blocks of 128 bytes, for bf16 64 elements.
constexpr std::int64_t kBlockBytes = 128;
constexpr std::uint8_t kBlockBits = 7;
constexpr std::int64_t kElementBytes = 2;
constexpr std::int64_t kBlockElements = kBlockBytes / kElementBytes;

/// Within blocks of 32 rows, the lowest `low_bits` bits of a row's number become the highest of its place,
/// and the three bits above them the lowest.
MatrixLayout in_blocks_of_32(std::uint8_t low_bits, std::int64_t pitch) {
  MatrixLayout layout;
  layout.bits[0] = low_bits;
  layout.step[0] = (32 >> low_bits) * pitch;
  layout.bits[1] = 3;
  layout.step[1] = pitch;
  layout.step[3] = 32 * pitch;
  return layout;
}

/// Byte x of row n at `(x/128 · rows + n) · 128 + x%128`.
MatrixLayout in_blocks(MatrixLayout layout, std::int64_t rows) {
  layout.unit_bits = kBlockBits;
  layout.unit_step = rows * kBlockBytes;
  return layout;
}

/// FlashInfer's TRT-LLM-gen fused MoE, in the form that it takes for bf16.
class TrtllmLayout final : public MoeLayout {
 public:
  std::string name() const override { return "trtllm"; }

  void require(const ExpertForm& form) const override {
    if (form.dtype != DType::kBF16) {
      throw UsageError(fmt::format("--moe-layout trtllm: takes bfloat16 weights but the model is {}",
                                   dtype_name(form.dtype)));
    }
    if (form.hidden % kBlockElements != 0) {
      throw UsageError(
          fmt::format("--moe-layout trtllm: the hidden size {} must be a multiple of {} (blocks of K); use "
                      "another layout",
                      form.hidden, kBlockElements));
    }
  }

  void add_parameters(const Catalog& catalog, const LocalExperts& experts,
                      std::vector<Parameter>& parameters) const override {
    // What the launcher of the kernels asks for.
    constexpr std::int64_t kInnerUnit = 128;
    add_block_major_experts(catalog, experts, kInnerUnit, parameters);
  }
};

}  // namespace

MatrixLayout shuffled_rows(std::int64_t pitch) {
  return in_blocks_of_32(2, pitch);
}

MatrixLayout shuffled_gated_rows(std::int64_t pitch) {
  return in_blocks_of_32(1, pitch);
}

void add_block_major_experts(const Catalog& catalog, const LocalExperts& experts, std::int64_t inner_unit,
                             std::vector<Parameter>& parameters) {
  const Shape& gate = catalog[experts.slots.front().gate].shape;
  const std::int64_t inner = gate.rows();
  const std::int64_t hidden = gate.cols();
  const std::int64_t padded = round_up(inner / experts.inner_parts, inner_unit);
  const std::int64_t start = std::min(inner, experts.inner_rank * padded);
  const std::int64_t local = std::min(inner, start + padded) - start;
  const MatrixLayout into_w13 = in_blocks(shuffled_gated_rows(kBlockBytes), 2 * padded);
  const MatrixLayout into_w2 = in_blocks(shuffled_rows(kBlockBytes), hidden);
  constexpr std::int64_t kGateBehindUp = 8 * kBlockBytes;
  std::vector<PlacedBox> w13;
  std::vector<PlacedBox> w2;
  std::int64_t slot = 0;
  for (const ExpertTensors& expert : experts.slots) {
    const std::int64_t w13_slab = slot * 2 * padded * hidden * kElementBytes;
    const std::int64_t w2_slab = slot * padded * hidden * kElementBytes;
    const Box rows{start, local, 0, hidden};
    w13.push_back({{expert.up, rows}, w13_slab, into_w13, padded, hidden});
    w13.push_back({{expert.gate, rows}, w13_slab + kGateBehindUp, into_w13, padded, hidden});
    w2.push_back({{expert.down, {0, hidden, start, local}}, w2_slab, into_w2, hidden, padded});
    ++slot;
  }
  constexpr std::int64_t kBlock = kBlockElements;
  parameters.push_back(
      place(catalog, experts.prefix + ".w13_weight", {slot, hidden / kBlock, 2 * padded, kBlock}, w13));
  parameters.push_back(
      place(catalog, experts.prefix + ".w2_weight", {slot, padded / kBlock, hidden, kBlock}, w2));
}

const MoeLayout& trtllm_moe_layout() {
  static const TrtllmLayout layout;
  return layout;
}

}  // namespace weightcast
