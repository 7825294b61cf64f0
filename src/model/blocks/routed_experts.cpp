#include "model/blocks/routed_experts.hpp"

#include <fmt/format.h>

#include <utility>

#include "model/blocks/expert_names.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

RoutedExperts::RoutedExperts(Names names, const ExpertSizes& sizes)
    : names_(std::move(names)), sizes_(sizes) {}

void RoutedExperts::list(const Site& site, TensorList& tensors) const {
  const std::string experts = site.canonical + names_.canonical;
  tensors.for_each_expert(sizes_.experts, [&](std::int64_t expert) {
    const std::string at = fmt::format("{}.{}.", experts, expert);
    tensors.add_linear(at + sizes_.gate, sizes_.inner, sizes_.hidden);
    tensors.add_linear(at + sizes_.up, sizes_.inner, sizes_.hidden);
    tensors.add_linear(at + sizes_.down, sizes_.hidden, sizes_.inner);
  });
}

void RoutedExperts::add_parameters(const Site& site, const EngineCut& cut,
                                   std::vector<Parameter>& parameters) const {
  const EngineLayout& layout = cut.layout;
  const std::string experts = site.canonical + names_.canonical;
  const std::vector<std::int64_t> held =
      layout.experts.experts_on(site.layer, layout.ep, cut.rank.ep, sizes_.experts, layout.option);
  require_divides(layout.option, layout.expert_tp_name(), layout.expert_tp(), "the inner size of " + experts,
                  sizes_.inner);
  std::vector<ExpertTensors> slots;
  std::vector<std::uint32_t> weights;
  slots.reserve(held.size());
  for (const std::int64_t expert : held) {
    const auto index = [&](const char* matrix) {
      return cut.catalog.at(expert_weight(experts, expert, matrix));
    };
    const ExpertTensors& slot =
        slots.emplace_back(ExpertTensors{index(sizes_.gate), index(sizes_.up), index(sizes_.down)});
    weights.insert(weights.end(), {slot.gate, slot.up, slot.down});
  }
  const MoeLayout& moe_layout = find_moe_layout(layout.moe_layout);
  const Quantization* const quantization = cut.linears.quantization(weights);
  moe_layout.require({sizes_.inner, layout.expert_tp(), sizes_.hidden, sizes_.dtype,
                      quantization ? std::optional(quantization->quantizer()) : std::nullopt});
  moe_layout.add_parameters(cut.catalog,
                            {site.engine + names_.engine + experts_module(layout.engine), slots,
                             layout.expert_tp(), cut.rank.expert_tp, quantization, layout.activations},
                            parameters);
}

void RoutedExperts::add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                                        std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  for_each_trainer_expert(cut, from, at, sizes_.experts, [&](const TrainerExpert& expert) {
    const auto tensor = [&](const char* matrix) { return expert_weight(from, expert.number, matrix); };
    tensors.push_back(
        {cut.inner.gate_up(expert.grouped("linear_fc1"), tensor(sizes_.gate), tensor(sizes_.up)),
         {expert.alone("linear_fc1")}});
    tensors.push_back({cut.inner.row_parallel(expert.grouped("linear_fc2"), tensor(sizes_.down)),
                       {expert.alone("linear_fc2")}});
  });
}

std::optional<StoredForm> RoutedExperts::other_stored_form(const Site& site, const Tensor& tensor) const {
  if (tensor.expert == Tensor::kNone) return std::nullopt;
  const std::string experts = site.canonical + names_.canonical;
  const std::string stacked = names_.memory.empty() ? experts : site.canonical + names_.memory;
  const std::int64_t rows = tensor.shape.rows();
  const std::int64_t cols = tensor.shape.cols();
  const auto gate_up = [&](std::int64_t half) {
    return StoredForm{
        stacked + ".gate_up_proj", {sizes_.experts, 2 * rows, cols}, (2 * tensor.expert + half) * rows};
  };
  if (tensor.name == expert_weight(experts, tensor.expert, sizes_.gate)) return gate_up(0);
  if (tensor.name == expert_weight(experts, tensor.expert, sizes_.up)) return gate_up(1);
  if (tensor.name == expert_weight(experts, tensor.expert, sizes_.down)) {
    return StoredForm{stacked + ".down_proj", {sizes_.experts, rows, cols}, tensor.expert * rows};
  }
  return std::nullopt;
}

}  // namespace weightcast
