#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "support/safetensors_file.hpp"

namespace weightcast::test_support {

/// What trainers call their tensors. The defaults are what Megatron-Core's fused layers write.
struct MegatronNames {
  std::string wrappers;  ///< such as `module.module.`, in front of every name
  std::string input_norm = "self_attention.linear_qkv.layer_norm_weight";
  std::string dense_norm = "mlp.linear_fc1.layer_norm_weight";  ///< before the MLP of a dense layer
  std::string moe_norm = "pre_mlp_layernorm.weight";
  bool local_experts = false;   ///< `local_experts.{e}.linear_fc1.weight` instead of `linear_fc1.weight{e}`
  bool global_numbers = false;  ///< layers and experts are numbered within the model, not within the rank
  bool chunk_prefix = true;     ///< `vp_stages.{v}.` where a stage has several chunks
};

/// How trainers divide a model, in Megatron-Core's terms. Experts are replicated over what `etp` and `e`
/// leave of a stage.
struct MegatronLayout {
  std::int64_t d = 1;
  std::int64_t p = 1;
  std::int64_t t = 1;
  std::int64_t c = 1;
  std::int64_t etp = 1;
  std::int64_t e = 1;
  bool pp_before_dp = false;
  std::vector<std::int64_t> stage_layers{};  ///< chunk-major; empty: the even split
  MegatronNames names{};
  std::int64_t vocabulary_rows = 0;  ///< with padding; 0: the next multiple of 128·t
  /// What fills the padding. Nothing: zeros.
  std::optional<char> junk = 0x5a;
  /// The copy of a tied embedding that the last of several stages keeps is filled with 0x5a instead.
  bool stale_copy = false;

  std::int64_t ranks() const { return d * p * t * c; }
};

/// What every trainer rank of that layout holds of a Qwen3 or Qwen3-MoE checkpoint, by local name. An
/// implementation apart from the program's own: it builds the matrices that Megatron-Core cuts, whole, and
/// cuts them. Throws std::runtime_error when the layout does not divide the model.
std::vector<SafetensorsFile> trainer_shards(const SafetensorsFile& checkpoint, const nlohmann::json& config,
                                            const MegatronLayout& layout);

/// Writes `trainer-<rank>` files of that extension (`.safetensors` or `.h5`) and `config.json`.
void write_trainer_shards(const std::vector<SafetensorsFile>& shards, const nlohmann::json& config,
                          const std::string& directory, const std::string& extension);

/// The tensors of a file in either container.
SafetensorsFile read_tensors(const std::string& path);

}  // namespace weightcast::test_support
