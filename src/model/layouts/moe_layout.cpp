#include "model/layouts/moe_layout.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

#include "core/error.hpp"

namespace weightcast {

const MoeLayout& find_moe_layout(std::string_view name) {
  const std::array<const MoeLayout*, 4> layouts{&triton_moe_layout(), &triton_kernels_moe_layout(),
                                                &cutlass_moe_layout(), &trtllm_moe_layout()};
  std::vector<std::string> names;
  for (const MoeLayout* layout : layouts) {
    if (layout->name() == name) return *layout;
    names.push_back(layout->name());
  }
  throw UsageError(fmt::format("--moe-layout {}: unknown; choose one of {}", name, fmt::join(names, ", ")));
}

void add_stacked_experts(const Catalog& catalog, const LocalExperts& experts, HalfOrder order,
                         std::vector<Parameter>& parameters) {
  const Shape& gate_shape = catalog[experts.slots.front().gate].shape;
  const std::int64_t inner = gate_shape.rows();
  const std::int64_t hidden = gate_shape.cols();
  const std::int64_t local = inner / experts.inner_parts;
  const std::int64_t start = experts.inner_rank * local;
  const auto count = static_cast<std::int64_t>(experts.slots.size());

  std::vector<TensorBox> w13;
  std::vector<TensorBox> w2;
  w13.reserve(2 * experts.slots.size());
  w2.reserve(experts.slots.size());
  for (const ExpertTensors& expert : experts.slots) {
    const TensorBox gate{expert.gate, {start, local, 0, hidden}};
    const TensorBox up{expert.up, {start, local, 0, hidden}};
    w13.push_back(order == HalfOrder::kGateFirst ? gate : up);
    w13.push_back(order == HalfOrder::kGateFirst ? up : gate);
    w2.push_back({expert.down, {0, hidden, start, local}});
  }
  const auto add = [&](const char* name, const Shape& shape, const std::vector<TensorBox>& boxes) {
    Parameter values = stack(catalog, experts.prefix + name, shape, boxes);
    if (experts.quantization == nullptr) {
      parameters.push_back(std::move(values));
      return;
    }
    for (Parameter& plane : quantized_stack(catalog, values, *experts.quantization, "--moe-layout")) {
      parameters.push_back(std::move(plane));
    }
  };
  add(".w13_weight", {count, 2 * local, hidden}, w13);
  add(".w2_weight", {count, hidden, local}, w2);
}

}  // namespace weightcast
