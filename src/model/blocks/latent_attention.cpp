#include "model/blocks/latent_attention.hpp"

#include <utility>

namespace weightcast {

LatentAttention::LatentAttention(Names names, const LatentAttentionSizes& sizes)
    : names_(std::move(names)), sizes_(sizes) {}

void LatentAttention::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  const std::int64_t queries = sizes_.heads * (sizes_.nope_dim + sizes_.rope_dim);
  if (sizes_.query_rank > 0) {
    tensors.add_linear(at + "q_a_proj", sizes_.query_rank, sizes_.hidden);
    tensors.add(at + "q_a_layernorm.weight", {sizes_.query_rank});
    tensors.add_linear(at + "q_b_proj", queries, sizes_.query_rank);
  } else {
    tensors.add_linear(at + "q_proj", queries, sizes_.hidden);
  }
  tensors.add_linear(at + "kv_a_proj_with_mqa", sizes_.kv_rank + sizes_.rope_dim, sizes_.hidden);
  tensors.add(at + "kv_a_layernorm.weight", {sizes_.kv_rank});
  tensors.add_linear(at + "kv_b_proj", sizes_.heads * (sizes_.nope_dim + sizes_.value_dim), sizes_.kv_rank);
  tensors.add_linear(at + "o_proj", sizes_.hidden, sizes_.heads * sizes_.value_dim);
}

void LatentAttention::add_parameters(const Site& site, const EngineCut& cut,
                                     std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const auto by_head = [&](const std::string& name) {
    cut.linears.add(cut.attention.column_parallel(at + name, from + name, sizes_.heads, "attention heads"),
                    parameters);
  };
  const auto norm = [&](const std::string& name) {
    parameters.push_back(cut.attention.replicated(at + name, from + name));
  };
  const std::string latent_kv = "kv_a_proj_with_mqa.weight";
  if (sizes_.query_rank > 0) {
    const char* const fused =
        cut.layout.engine == Engine::kVllm ? "fused_qkv_a_proj.weight" : "fused_qkv_a_proj_with_mqa.weight";
    cut.linears.add(cut.attention.stacked(at + fused, {from + "q_a_proj.weight", from + latent_kv}),
                    parameters);
    norm("q_a_layernorm.weight");
    by_head("q_b_proj.weight");
  } else {
    cut.linears.add(cut.attention.replicated(at + latent_kv, from + latent_kv), parameters);
    by_head("q_proj.weight");
  }
  norm("kv_a_layernorm.weight");
  by_head("kv_b_proj.weight");
  cut.linears.add(cut.attention.row_parallel(at + "o_proj.weight", from + "o_proj.weight"), parameters);
}

void LatentAttention::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                          std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  const auto whole = [&](const char* name, const char* tensor, std::vector<std::string> others = {}) {
    tensors.push_back({cut.dense.replicated(at + name, from + tensor), std::move(others)});
  };
  const auto by_head = [&](const char* name, const char* tensor) {
    tensors.push_back({cut.dense.column_parallel(at + name, from + tensor, sizes_.heads, "attention heads")});
  };
  if (sizes_.query_rank > 0) {
    whole("linear_q_down_proj.weight", "q_a_proj.weight");
    // Fused into the linear layer behind it, or alone.
    whole("linear_q_up_proj.layer_norm_weight", "q_a_layernorm.weight", {at + "q_layernorm.weight"});
    by_head("linear_q_up_proj.weight", "q_b_proj.weight");
  } else {
    by_head("linear_q_proj.weight", "q_proj.weight");
  }
  whole("linear_kv_down_proj.weight", "kv_a_proj_with_mqa.weight");
  whole("linear_kv_up_proj.layer_norm_weight", "kv_a_layernorm.weight", {at + "kv_layernorm.weight"});
  by_head("linear_kv_up_proj.weight", "kv_b_proj.weight");
  tensors.push_back({cut.dense.row_parallel(at + "linear_proj.weight", from + "o_proj.weight")});
}

}  // namespace weightcast
