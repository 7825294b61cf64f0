#include "model/blocks/plain_experts.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"
#include "model/blocks/expert_names.hpp"

namespace weightcast {

namespace {

constexpr const char* kUp = "up_proj";
constexpr const char* kDown = "down_proj";

}  // namespace

PlainExperts::PlainExperts(Names names, const PlainExpertSizes& sizes)
    : names_(std::move(names)), sizes_(sizes) {}

void PlainExperts::list(const Site& site, TensorList& tensors) const {
  const std::string experts = site.canonical + names_.canonical;
  tensors.for_each_expert(sizes_.experts, [&](std::int64_t expert) {
    const std::string at = fmt::format("{}.{}.", experts, expert);
    tensors.add_linear(at + kUp, sizes_.inner, sizes_.hidden);
    tensors.add_linear(at + kDown, sizes_.hidden, sizes_.inner);
  });
}

void PlainExperts::add_parameters(const Site& site, const EngineCut& cut,
                                  std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const HeldExperts held = held_experts(site, names_, cut, sizes_.experts, sizes_.inner, "have no gate");
  const std::int64_t start = held.start;
  const std::int64_t inner = held.inner;
  std::vector<TensorBox> up;
  std::vector<TensorBox> down;
  for (const std::int64_t expert : held.numbers) {
    up.push_back({cut.catalog.at(expert_weight(from, expert, kUp)), {start, inner, 0, sizes_.hidden}});
    down.push_back({cut.catalog.at(expert_weight(from, expert, kDown)), {0, sizes_.hidden, start, inner}});
  }
  const std::int64_t slots = std::ssize(held.numbers);
  parameters.push_back(stack(cut.catalog, held.module + ".w13_weight", {slots, inner, sizes_.hidden}, up));
  parameters.push_back(stack(cut.catalog, held.module + ".w2_weight", {slots, sizes_.hidden, inner}, down));
}

void PlainExperts::add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                                       std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  for_each_trainer_expert(
      cut, from, site.trainer + names_.trainer, sizes_.experts, [&](const TrainerExpert& expert) {
        tensors.push_back({cut.inner.sections(expert.grouped("linear_fc1"),
                                              {{expert_weight(from, expert.number, kUp), 0, sizes_.inner}}),
                           {expert.alone("linear_fc1")}});
        tensors.push_back(
            {cut.inner.row_parallel(expert.grouped("linear_fc2"), expert_weight(from, expert.number, kDown)),
             {expert.alone("linear_fc2")}});
      });
}

std::optional<StoredForm> PlainExperts::other_stored_form(const Site& site, const Tensor& tensor) const {
  if (tensor.expert == Tensor::kNone) return std::nullopt;
  const std::string experts = site.canonical + names_.canonical;
  const std::int64_t rows = tensor.shape.rows();
  for (const char* const matrix : {kUp, kDown}) {
    if (tensor.name != expert_weight(experts, tensor.expert, matrix)) continue;
    return StoredForm{fmt::format("{}.{}", experts, matrix),
                      {sizes_.experts, rows, tensor.shape.cols()},
                      tensor.expert * rows};
  }
  return std::nullopt;
}

}  // namespace weightcast
