#include "model/blocks/gated_mlp.hpp"

#include <utility>

namespace weightcast {

GatedMlp::GatedMlp(Names names, const MlpSizes& sizes) : names_(std::move(names)), sizes_(sizes) {}

void GatedMlp::list(const Site& site, TensorList& tensors) const {
  const auto add = [&](const char* module, std::int64_t out, std::int64_t in) {
    const std::string name = site.canonical + names_.canonical + module;
    tensors.add_linear(name, out, in);
    if (sizes_.bias) tensors.add(name + ".bias", {out});
  };
  if (sizes_.fused) {
    add("gate_up_proj", 2 * sizes_.inner, sizes_.hidden);
  } else {
    add("gate_proj", sizes_.inner, sizes_.hidden);
    add("up_proj", sizes_.inner, sizes_.hidden);
  }
  add("down_proj", sizes_.hidden, sizes_.inner);
}

Parameter GatedMlp::gate_up(const TensorParallel& cut, const std::string& to, const Site& site,
                            const std::string& kind) const {
  const std::string from = site.canonical + names_.canonical;
  return sizes_.fused ? cut.gate_up(to + kind, from + "gate_up_proj" + kind)
                      : cut.gate_up(to + kind, from + "gate_proj" + kind, from + "up_proj" + kind);
}

void GatedMlp::add_parameters(const Site& site, const EngineCut& cut,
                              std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const TensorParallel& ranks =
      sizes_.shared ? cut.shared_experts(from.substr(0, from.rfind('.'))) : cut.dense;
  cut.linears.add(gate_up(ranks, at + "gate_up_proj", site, ".weight"), parameters);
  cut.linears.add(ranks.row_parallel(at + "down_proj.weight", from + "down_proj.weight"), parameters);
  if (!sizes_.bias) return;
  parameters.push_back(gate_up(ranks, at + "gate_up_proj", site, ".bias"));
  // Stored whole on every rank; the engine adds it once, on tp rank 0.
  parameters.push_back(ranks.replicated(at + "down_proj.bias", from + "down_proj.bias"));
}

void GatedMlp::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                   std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  tensors.push_back({gate_up(cut.dense, at + "linear_fc1", site, ".weight")});
  tensors.push_back({cut.dense.row_parallel(at + "linear_fc2.weight", from + "down_proj.weight")});
  if (!sizes_.bias) return;
  tensors.push_back({gate_up(cut.dense, at + "linear_fc1", site, ".bias")});
  tensors.push_back({cut.dense.replicated(at + "linear_fc2.bias", from + "down_proj.bias")});
}

}  // namespace weightcast
