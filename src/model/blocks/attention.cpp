#include "model/blocks/attention.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"

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
  const KeysAndValues which = sizes_.keys_and_values;
  if (which != KeysAndValues::kShared) add("k_proj", kv_width, sizes_.hidden, sizes_.qkv_bias);
  if (which == KeysAndValues::kOwn) add("v_proj", kv_width, sizes_.hidden, sizes_.qkv_bias);
  add("o_proj", sizes_.hidden, width, sizes_.output_bias);
}

void Attention::add_parameters(const Site& site, const EngineCut& cut,
                               std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const bool own = sizes_.keys_and_values == KeysAndValues::kOwn;
  const std::string values = own ? "v_proj" : "k_proj";
  const auto qkv = [&](const std::string& kind) {
    return cut.attention.fused_qkv(at + "qkv_proj" + kind, from + "q_proj" + kind, from + "k_proj" + kind,
                                   from + values + kind, sizes_.heads, sizes_.kv_heads, sizes_.head_dim);
  };
  if (!own && cut.layout.quantizer) {
    throw UsageError(
        fmt::format("--quantize: {}k_proj is in several places, or in none, and not quantised; "
                    "leave the option out",
                    from));
  }
  if (sizes_.keys_and_values == KeysAndValues::kShared) {
    parameters.push_back(queries(site, cut));
  } else {
    cut.linears.add(qkv(".weight"), parameters);
  }
  cut.linears.add(cut.attention.row_parallel(at + "o_proj.weight", from + "o_proj.weight"), parameters);
  if (sizes_.qkv_bias) parameters.push_back(qkv(".bias"));
  // Stored whole on every rank; the engine adds it once, on tp rank 0.
  if (sizes_.output_bias) {
    parameters.push_back(cut.attention.replicated(at + "o_proj.bias", from + "o_proj.bias"));
  }
}

Parameter Attention::queries(const Site& site, const EngineCut& cut) const {
  const std::string from = site.canonical + names_.canonical + "q_proj.weight";
  const std::string at = site.engine + names_.engine;
  const bool alone = cut.layout.engine == Engine::kVllm;
  Parameter parameter = cut.attention.column_parallel(at + (alone ? "q_proj.weight" : "qkv_proj.weight"),
                                                      from, sizes_.heads, "attention heads");
  if (alone) return parameter;
  const std::int64_t q_bytes = parameter.bytes();
  const std::int64_t kv_rows = 2 * cut.attention.heads_of_rank(from, sizes_.kv_heads) * sizes_.head_dim;
  parameter.shape = {parameter.shape.rows() + kv_rows, sizes_.hidden};
  parameter.untouched.push_back({q_bytes, parameter.bytes() - q_bytes});
  return parameter;
}

bool Attention::is_engines_own(const Site& site, std::string_view parameter) const {
  return sizes_.keys_and_values == KeysAndValues::kShared &&
         parameter == site.engine + names_.engine + "k_norm.weight";
}

void Attention::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                    std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  const bool own = sizes_.keys_and_values == KeysAndValues::kOwn;
  // A fragment could be of the values alone, which trainers need not keep equal to the keys.
  if (!own) {
    require_divides(cut.dense.option(), cut.dense.size_name(), cut.dense.size(),
                    "the kv heads of " + from + "k_proj", sizes_.kv_heads);
  }
  const std::string values = own ? "v_proj" : "k_proj";
  const auto qkv = [&](const std::string& kind) {
    return cut.dense.interleaved_qkv(at + "linear_qkv" + kind, from + "q_proj" + kind, from + "k_proj" + kind,
                                     from + values + kind, sizes_.heads, sizes_.kv_heads, sizes_.head_dim,
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
