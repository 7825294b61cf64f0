#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct GatedDeltaSizes {
  std::int64_t hidden = 0;
  std::int64_t key_heads = 0;
  std::int64_t value_heads = 0;
  std::int64_t key_dim = 0;  ///< of a head
  std::int64_t value_dim = 0;
  std::int64_t kernel = 0;  ///< of the convolution
  /// Queries, keys, values and gates z are one tensor, head group by head group: a key head's query, its key,
  /// the values and the gates of its value heads; so are b and a. Otherwise q, k and v lie one behind the
  /// other in one tensor, and z, b and a are tensors of their own.
  bool grouped = false;

  std::int64_t queries() const { return key_heads * key_dim; }
  std::int64_t values() const { return value_heads * value_dim; }
  /// Channels of the convolution: those of q, k and v.
  std::int64_t channels() const { return 2 * queries() + values(); }
};

/// Linear attention by the gated delta rule. Engines fuse what is projected from the hidden state, cut by
/// heads, and keep A_log in float32. Of trainers those are known that have all of it whole on each rank.
class GatedDeltaNet final : public Block {
 public:
  /// `names` are what stands before `in_proj_qkv`: `linear_attn.`, at trainers `self_attention.linear_attn.`.
  GatedDeltaNet(Names names, const GatedDeltaSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  GatedDeltaSizes sizes_;
};

}  // namespace weightcast
