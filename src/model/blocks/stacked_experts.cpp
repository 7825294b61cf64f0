#include "model/blocks/stacked_experts.hpp"

#include <utility>

#include "model/blocks/expert_names.hpp"

namespace weightcast {

StackedExperts::StackedExperts(Names names, const StackedExpertSizes& sizes)
    : names_(std::move(names)), sizes_(sizes) {}

void StackedExperts::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  tensors.add(at + ".gate_up_proj", {sizes_.experts, 2 * sizes_.inner, sizes_.hidden});
  tensors.add(at + ".down_proj", {sizes_.experts, sizes_.hidden, sizes_.inner});
}

void StackedExperts::add_parameters(const Site& site, const EngineCut& cut,
                                    std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const HeldExperts held =
      held_experts(site, names_, cut, sizes_.experts, sizes_.inner, "are stored stacked");
  const std::int64_t start = held.start;
  const std::int64_t inner = held.inner;
  const std::uint32_t gate_up = cut.catalog.at(from + ".gate_up_proj");
  const std::uint32_t down = cut.catalog.at(from + ".down_proj");
  std::vector<TensorBox> w13;
  std::vector<TensorBox> w2;
  for (const std::int64_t expert : held.numbers) {
    for (const std::int64_t half : {0, 1}) {
      w13.push_back({gate_up, {(2 * expert + half) * sizes_.inner + start, inner, 0, sizes_.hidden}});
    }
    w2.push_back({down, {expert * sizes_.hidden, sizes_.hidden, start, inner}});
  }
  const std::int64_t slots = std::ssize(held.numbers);
  parameters.push_back(
      stack(cut.catalog, held.module + ".w13_weight", {slots, 2 * inner, sizes_.hidden}, w13));
  parameters.push_back(stack(cut.catalog, held.module + ".w2_weight", {slots, sizes_.hidden, inner}, w2));
}

}  // namespace weightcast
