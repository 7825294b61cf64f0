#include "model/blocks/plain_mlp.hpp"

#include <utility>

namespace weightcast {

PlainMlp::PlainMlp(Names names, std::int64_t hidden, std::int64_t inner, bool shared)
    : names_(std::move(names)), hidden_(hidden), inner_(inner), shared_(shared) {}

void PlainMlp::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  tensors.add_linear(at + "up_proj", inner_, hidden_);
  tensors.add_linear(at + "down_proj", hidden_, inner_);
}

void PlainMlp::add_parameters(const Site& site, const EngineCut& cut,
                              std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const TensorParallel& ranks = shared_ ? cut.shared_experts(from.substr(0, from.rfind('.'))) : cut.dense;
  cut.linears.add(ranks.sections(at + "up_proj.weight", {{from + "up_proj.weight", 0, inner_}}), parameters);
  cut.linears.add(ranks.row_parallel(at + "down_proj.weight", from + "down_proj.weight"), parameters);
}

void PlainMlp::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                   std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  const TensorParallel& ranks = cut.dense;
  tensors.push_back({ranks.sections(at + "linear_fc1.weight", {{from + "up_proj.weight", 0, inner_}})});
  tensors.push_back({ranks.row_parallel(at + "linear_fc2.weight", from + "down_proj.weight")});
}

}  // namespace weightcast
