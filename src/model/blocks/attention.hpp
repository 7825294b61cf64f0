#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct AttentionSizes {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  bool qkv_bias = false;
  bool output_bias = false;
  bool gated = false;  ///< q_proj has a gate behind each head, as wide as the head
};

/// Grouped-query attention: q_proj, k_proj, v_proj and o_proj. Engines fuse the first three, one behind the
/// other; Megatron fuses them head group by head group.
class Attention final : public Block {
 public:
  /// `names` are what stands before `q_proj`, `qkv_proj` and `linear_qkv`: `self_attn.`, `self_attention.`.
  Attention(Names names, const AttentionSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  AttentionSizes sizes_;
};

}  // namespace weightcast
