#include "model/blocks/indexer.hpp"

#include <utility>

namespace weightcast {

Indexer::Indexer(Names names, const IndexerSizes& sizes, bool own)
    : names_(std::move(names)), sizes_(sizes), own_(own) {}

void Indexer::list(const Site& site, TensorList& tensors) const {
  if (!own_) return;
  const std::string at = site.canonical + names_.canonical;
  tensors.add_linear(at + "wq_b", sizes_.heads * sizes_.head_dim, sizes_.query_rank);
  tensors.add(at + "wk.weight", {sizes_.head_dim, sizes_.hidden});
  tensors.add(at + "weights_proj.weight", {sizes_.heads, sizes_.hidden});
  tensors.add(at + "k_norm.weight", {sizes_.head_dim});
  tensors.add(at + "k_norm.bias", {sizes_.head_dim});
}

void Indexer::add_parameters(const Site& site, const EngineCut& cut,
                             std::vector<Parameter>& parameters) const {
  if (!own_) return;
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  cut.linears.add(cut.attention.replicated(at + "wq_b.weight", from + "wq_b.weight"), parameters);
  parameters.push_back(cut.attention.stacked(at + "wk_weights_proj.weight",
                                             {from + "wk.weight", from + "weights_proj.weight"}));
  for (const std::string name : {"k_norm.weight", "k_norm.bias"}) {
    parameters.push_back(cut.attention.replicated(at + name, from + name, DType::kF32));
  }
}

void Indexer::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                  std::vector<TrainerTensor>& tensors) const {
  if (!own_) return;
  const auto whole = [&](const std::string& name, const std::string& tensor) {
    tensors.push_back({cut.dense.replicated(site.trainer + names_.trainer + name,
                                            site.canonical + names_.canonical + tensor)});
  };
  whole("linear_wq_b.weight", "wq_b.weight");
  whole("linear_wk.weight", "wk.weight");
  whole("linear_weights_proj.weight", "weights_proj.weight");
  whole("k_norm.weight", "k_norm.weight");
  whole("k_norm.bias", "k_norm.bias");
}

bool Indexer::is_engines_own(const Site& site, std::string_view parameter) const {
  return !own_ && parameter.starts_with(site.engine + names_.engine);
}

}  // namespace weightcast
