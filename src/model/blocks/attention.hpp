#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// Where a layer's keys and values come from.
enum class KeysAndValues : std::uint8_t {
  kOwn,     ///< a projection each
  kOne,     ///< one projection: values are the keys before their norm
  kShared,  ///< those of another layer; engines of SGLang's kind have room for them that they never use
};

struct AttentionSizes {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  bool qkv_bias = false;
  bool output_bias = false;
  bool gated = false;  ///< q_proj has a gate behind each head, as wide as the head
  KeysAndValues keys_and_values = KeysAndValues::kOwn;
};

/// Grouped-query attention: q_proj, k_proj, v_proj and o_proj. Engines fuse the first three, one behind the
/// other; Megatron fuses them head group by head group. Where values are keys k_proj is in both places; where
/// both are another layer's vLLM has q_proj alone. Trainers have values
/// behind keys all the same, which are not read where they are the keys.
class Attention final : public Block {
 public:
  /// `names` are what stands before `q_proj`, `qkv_proj` and `linear_qkv`: `self_attn.`, `self_attention.`.
  Attention(Names names, const AttentionSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;
  /// Of shared keys the norm that SGLang has and never uses.
  bool is_engines_own(const Site& site, std::string_view parameter) const override;

 private:
  /// q_proj of an engine that has shared keys and values in another layer.
  Parameter queries(const Site& site, const EngineCut& cut) const;

  Names names_;
  AttentionSizes sizes_;
};

}  // namespace weightcast
