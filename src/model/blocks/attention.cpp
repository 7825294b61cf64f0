#include "model/blocks/attention.hpp"

#include <utility>

namespace weightcast {

Attention::Attention(Names names, const AttentionSizes& sizes) : names_(std::move(names)), sizes_(sizes) {}

void Attention::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  const auto add = [&](const char* module, std::int64_t out, std::int64_t in, bool bias) {
    tensors.add_linear(at + module, out, in);
    if (bias) tensors.add(at + module + ".bias", {out});
  };
  const std::int64_t width = sizes_.heads * sizes_.head_dim;
  const std::int64_t kv_width = sizes_.kv_heads * sizes_.head_dim;
  add("q_proj", sizes_.gated ? 2 * width : width, sizes_.hidden, sizes_.qkv_bias);
  add("k_proj", kv_width, sizes_.hidden, sizes_.qkv_bias);
  add("v_proj", kv_width, sizes_.hidden, sizes_.qkv_bias);
  add("o_proj", sizes_.hidden, width, sizes_.output_bias);
}

void Attention::add_parameters(const Site& site, const EngineCut& cut,
                               std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const auto qkv = [&](const std::string& kind) {
    return cut.attention.fused_qkv(at + "qkv_proj" + kind, from + "q_proj" + kind, from + "k_proj" + kind,
                                   from + "v_proj" + kind, sizes_.heads, sizes_.kv_heads, sizes_.head_dim);
  };
  cut.linears.add(qkv(".weight"), parameters);
  cut.linears.add(cut.attention.row_parallel(at + "o_proj.weight", from + "o_proj.weight"), parameters);
  if (sizes_.qkv_bias) parameters.push_back(qkv(".bias"));
  // Stored whole on every rank; the engine adds it once, on tp rank 0.
  if (sizes_.output_bias) {
    parameters.push_back(cut.attention.replicated(at + "o_proj.bias", from + "o_proj.bias"));
  }
}

void Attention::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                    std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  const auto qkv = [&](const std::string& kind) {
    return cut.dense.interleaved_qkv(at + "linear_qkv" + kind, from + "q_proj" + kind, from + "k_proj" + kind,
                                     from + "v_proj" + kind, sizes_.heads, sizes_.kv_heads, sizes_.head_dim,
                                     sizes_.gated);
  };
  tensors.push_back({qkv(".weight")});
  tensors.push_back({cut.dense.row_parallel(at + "linear_proj.weight", from + "o_proj.weight")});
  if (sizes_.qkv_bias) tensors.push_back({qkv(".bias")});
  if (sizes_.output_bias) {
    tensors.push_back({cut.dense.replicated(at + "linear_proj.bias", from + "o_proj.bias")});
  }
}

}  // namespace weightcast
