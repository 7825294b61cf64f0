#include "model/blocks/replicated.hpp"

#include <utility>

namespace weightcast {

Replicated::Replicated(Names names, Shape shape) : names_(std::move(names)), shape_(shape) {}

void Replicated::list(const Site& site, TensorList& tensors) const {
  tensors.add(site.canonical + names_.canonical, shape_);
}

void Replicated::add_parameters(const Site& site, const EngineCut& cut,
                                std::vector<Parameter>& parameters) const {
  parameters.push_back(cut.dense.replicated(site.engine + names_.engine, site.canonical + names_.canonical));
}

void Replicated::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                     std::vector<TrainerTensor>& tensors) const {
  TrainerTensor tensor{
      cut.dense.replicated(site.trainer + names_.trainer, site.canonical + names_.canonical)};
  for (const std::string& other : names_.other_trainer) tensor.other_names.push_back(site.trainer + other);
  tensors.push_back(std::move(tensor));
}

}  // namespace weightcast
