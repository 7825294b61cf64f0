#include "model/blocks/replicated.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"

namespace weightcast {

Replicated::Replicated(Names names, Shape shape, Type type)
    : names_(std::move(names)), shape_(shape), type_(type) {}

void Replicated::list(const Site& site, TensorList& tensors) const {
  const std::string name = site.canonical + names_.canonical;
  type_ == Type::kFloat32 ? tensors.add_float32(name, shape_) : tensors.add(name, shape_);
}

void Replicated::add_parameters(const Site& site, const EngineCut& cut,
                                std::vector<Parameter>& parameters) const {
  const bool wide = type_ == Type::kWidened || type_ == Type::kFloat32 ||
                    (type_ == Type::kWidenedByVllm && cut.layout.engine == Engine::kVllm);
  const auto type = wide ? std::optional(DType::kF32) : std::nullopt;
  parameters.push_back(
      cut.dense.replicated(site.engine + names_.engine, site.canonical + names_.canonical, type));
}

void Replicated::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                     std::vector<TrainerTensor>& tensors) const {
  if (names_.trainer.empty()) {
    throw UsageError(fmt::format("{}: trainers of this model's family are not known, nor what they call {}",
                                 cut.dense.option(), names_.canonical));
  }
  TrainerTensor tensor{
      cut.dense.replicated(site.trainer + names_.trainer, site.canonical + names_.canonical)};
  for (const std::string& other : names_.other_trainer) tensor.other_names.push_back(site.trainer + other);
  tensors.push_back(std::move(tensor));
}

std::optional<StoredForm> Replicated::other_stored_form(const Site& site, const Tensor& tensor) const {
  if (names_.memory.empty() || tensor.name != site.canonical + names_.canonical) return std::nullopt;
  return StoredForm{site.canonical + names_.memory, shape_, 0};
}

}  // namespace weightcast
