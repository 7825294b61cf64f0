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

void StackedExperts::add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                                         std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const TensorParallel& ranks = cut.inner;
  require_divides(ranks.option(), ranks.size_name(), ranks.size(), "the inner size of " + from, sizes_.inner);
  const Catalog& catalog = ranks.catalog();
  const std::int64_t inner = sizes_.inner / ranks.size();
  const std::int64_t start = ranks.rank() * inner;
  const std::uint32_t gate_up = catalog.at(from + ".gate_up_proj");
  const std::uint32_t down = catalog.at(from + ".down_proj");
  for_each_trainer_expert(
      cut, from, site.trainer + names_.trainer, sizes_.experts, [&](const TrainerExpert& expert) {
        std::vector<TensorBox> halves;
        for (const std::int64_t half : {0, 1}) {
          halves.push_back(
              {gate_up, {(2 * expert.number + half) * sizes_.inner + start, inner, 0, sizes_.hidden}});
        }
        tensors.push_back({stack(catalog, expert.grouped("linear_fc1"), {2 * inner, sizes_.hidden}, halves),
                           {expert.alone("linear_fc1")}});
        tensors.push_back({stack(catalog, expert.grouped("linear_fc2"), {sizes_.hidden, inner},
                                 {{down, {expert.number * sizes_.hidden, sizes_.hidden, start, inner}}}),
                           {expert.alone("linear_fc2")}});
      });
}

}  // namespace weightcast
