#include "engine/laid_out_source.hpp"

#include <utility>

namespace weightcast::engine {

namespace {

/// [experts, rows, cols] whose element (e, r, c) is the one at `position(e, r, c)` of `stored`.
template <typename Position>
Tensor gather(const Tensor& stored, std::int64_t experts, std::int64_t rows, std::int64_t cols,
              Position position) {
  Tensor tensor{{experts, rows, cols}, {}};
  tensor.values.reserve(stored.values.size());
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        tensor.values.push_back(stored.values.at(static_cast<std::size_t>(position(e, r, c))));
      }
    }
  }
  return tensor;
}

/// Each matrix of `triton`, transposed.
Tensor from_triton_kernels(const Tensor& stored) {
  const std::int64_t rows = stored.shape[2];
  const std::int64_t cols = stored.shape[1];
  return gather(stored, stored.shape[0], rows, cols,
                [=](auto e, auto r, auto c) { return (e * cols + c) * rows + r; });
}

/// Gate and up in turns of eight rows.
Tensor from_deepgemm_mega(const Tensor& stored) {
  const std::int64_t rows = stored.shape[1];
  const std::int64_t cols = stored.shape[2];
  return gather(stored, stored.shape[0], rows, cols, [=](auto e, auto r, auto c) {
    const std::int64_t i = r % (rows / 2);
    const std::int64_t up = r / (rows / 2);
    return (e * rows + i / 8 * 16 + 8 * up + i % 8) * cols + c;
  });
}

/// [experts, K/64, rows, 64]: `row(r)` is where row r of the result stands.
template <typename Row>
Tensor from_blocks(const Tensor& stored, Row row) {
  const std::int64_t blocks = stored.shape[1];
  const std::int64_t rows = stored.shape[2];
  return gather(stored, stored.shape[0], rows, 64 * blocks, [=](auto e, auto r, auto c) {
    return ((e * blocks + c / 64) * rows + row(r)) * 64 + c % 64;
  });
}

Tensor from_trtllm_w13(const Tensor& stored) {
  const std::int64_t half = stored.shape[2] / 2;
  return from_blocks(stored, [=](std::int64_t r) {
    const std::int64_t i = r % half;
    return i / 16 * 32 + i % 2 * 16 + i % 16 / 2 + (r < half ? 8 : 0);
  });
}

Tensor from_trtllm_w2(const Tensor& stored) {
  return from_blocks(stored, [](std::int64_t r) { return r / 32 * 32 + r % 4 * 8 + r % 32 / 4; });
}

}  // namespace

bool is_known_layout(const std::string& moe_layout) {
  return moe_layout == "triton" || moe_layout == "cutlass" || moe_layout == "triton-kernels" ||
         moe_layout == "trtllm" || moe_layout == "deepgemm-mega";
}

std::int64_t inner_unit(const std::string& moe_layout) {
  return moe_layout == "trtllm" ? 128 : 1;
}

LaidOutSource::LaidOutSource(const ParameterSource& source, std::string moe_layout)
    : source_(source), moe_layout_(std::move(moe_layout)) {}

Tensor LaidOutSource::read(const std::string& name) const {
  Tensor stored = source_.read(name);
  const bool w13 = name.ends_with(".experts.w13_weight");
  const bool w2 = name.ends_with(".experts.w2_weight");
  if (moe_layout_ == "triton-kernels" && (w13 || w2)) return from_triton_kernels(stored);
  if (moe_layout_ == "deepgemm-mega" && w13) return from_deepgemm_mega(stored);
  if (moe_layout_ == "trtllm" && w13) return from_trtllm_w13(stored);
  if (moe_layout_ == "trtllm" && w2) return from_trtllm_w2(stored);
  return stored;
}

}  // namespace weightcast::engine
