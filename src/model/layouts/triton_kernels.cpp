#include <bit>

#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

/// The matrices of the Triton layout, each transposed: `w13[e, h, r]` and `w2[e, j, h]`, so [El, H, 2·It] and
/// [El, It, H]. (SGLang's triton_kernels runner for bf16 weights.)
class TritonKernelsLayout final : public MoeLayout {
 public:
  std::string name() const override { return "triton-kernels"; }

  void require(const ExpertForm& /*form*/) const override {}

  void add_parameters(const Catalog& catalog, const LocalExperts& experts,
                      std::vector<Parameter>& parameters) const override {
    const Tensor& gate = catalog[experts.slots.front().gate];
    const std::int64_t element = dtype_bytes(gate.dtype);
    const std::int64_t hidden = gate.shape.cols();
    const std::int64_t local = gate.shape.rows() / experts.inner_parts;
    const std::int64_t start = experts.inner_rank * local;
    const auto count = static_cast<std::int64_t>(experts.slots.size());
    const MatrixLayout into_w13 = transposed(2 * local, element);
    const MatrixLayout into_w2 = transposed(hidden, element);
    std::vector<PlacedBox> w13;
    std::vector<PlacedBox> w2;
    for (std::int64_t e = 0; e < count; ++e) {
      const ExpertTensors& expert = experts.slots[static_cast<std::size_t>(e)];
      const std::int64_t slab = e * hidden * 2 * local * element;
      w13.push_back({{expert.gate, {start, local, 0, hidden}}, slab, into_w13, local, hidden});
      w13.push_back(
          {{expert.up, {start, local, 0, hidden}}, slab + local * element, into_w13, local, hidden});
      w2.push_back(
          {{expert.down, {0, hidden, start, local}}, e * local * hidden * element, into_w2, hidden, local});
    }
    parameters.push_back(place(catalog, experts.prefix + ".w13_weight", {count, hidden, 2 * local}, w13));
    parameters.push_back(place(catalog, experts.prefix + ".w2_weight", {count, local, hidden}, w2));
  }

 private:
  /// Element (r, c) at position c × `rows` + r.
  static MatrixLayout transposed(std::int64_t rows, std::int64_t element) {
    MatrixLayout layout;
    layout.step[3] = element;
    layout.unit_bits = static_cast<std::uint8_t>(std::countr_zero(static_cast<std::uint64_t>(element)));
    layout.unit_step = rows * element;
    return layout;
  }
};

}  // namespace

const MoeLayout& triton_kernels_moe_layout() {
  static const TritonKernelsLayout layout;
  return layout;
}

}  // namespace weightcast
