#include "model/blocks/gated_mlp.hpp"

#include <utility>

namespace weightcast {

GatedMlp::GatedMlp(Names names, std::int64_t hidden, std::int64_t inner, bool bias)
    : names_(std::move(names)), hidden_(hidden), inner_(inner), bias_(bias) {}

void GatedMlp::list(const Site& site, TensorList& tensors) const {
  const auto add = [&](const char* module, std::int64_t out, std::int64_t in) {
    const std::string name = site.canonical + names_.canonical + module;
    tensors.add_linear(name, out, in);
    if (bias_) tensors.add(name + ".bias", {out});
  };
  add("gate_proj", inner_, hidden_);
  add("up_proj", inner_, hidden_);
  add("down_proj", hidden_, inner_);
}

void GatedMlp::add_parameters(const Site& site, const EngineCut& cut,
                              std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const auto gate_up = [&](const std::string& kind) {
    return cut.dense.gate_up(at + "gate_up_proj" + kind, from + "gate_proj" + kind, from + "up_proj" + kind);
  };
  cut.linears.add(gate_up(".weight"), parameters);
  cut.linears.add(cut.dense.row_parallel(at + "down_proj.weight", from + "down_proj.weight"), parameters);
  if (!bias_) return;
  parameters.push_back(gate_up(".bias"));
  // Stored whole on every rank; the engine adds it once, on tp rank 0.
  parameters.push_back(cut.dense.replicated(at + "down_proj.bias", from + "down_proj.bias"));
}

void GatedMlp::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                   std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  const auto gate_up = [&](const std::string& kind) {
    return cut.dense.gate_up(at + "linear_fc1" + kind, from + "gate_proj" + kind, from + "up_proj" + kind);
  };
  tensors.push_back({gate_up(".weight")});
  tensors.push_back({cut.dense.row_parallel(at + "linear_fc2.weight", from + "down_proj.weight")});
  if (!bias_) return;
  tensors.push_back({gate_up(".bias")});
  tensors.push_back({cut.dense.replicated(at + "linear_fc2.bias", from + "down_proj.bias")});
}

}  // namespace weightcast
