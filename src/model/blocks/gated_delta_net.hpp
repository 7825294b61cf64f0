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
/// heads, and keep A_log in float32. Of trainers two kinds are known. Megatron-Core's have of a rank's heads
/// `in_proj` [q; k; v; z; b; a], `conv1d` [q; k; v], `A_log`, `dt_bias` and columns of `out_proj`, and the
/// norm behind it whole, less one or as the model has it (`out_norm`). Those that run Hugging Face's module
/// have all of it whole.
class GatedDeltaNet final : public Block {
 public:
  /// `names` are what stands before `in_proj_qkv`: `linear_attn.`; at trainers before `in_proj`:
  /// `self_attention.`, with `linear_attn.` behind it where they run Hugging Face's module.
  GatedDeltaNet(Names names, const GatedDeltaSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  /// Throws UsageError where the ranks do not divide the heads.
  void require_cut(const TensorParallel& heads, const std::string& module,
                   const std::string& remedy = "") const;
  /// The rows of q, k, v, z, b and a of a rank's heads.
  std::vector<TensorParallel::Section> projected(const std::string& from, const TensorParallel& heads) const;
  void add_whole(const Site& site, const TrainerCut& cut, std::vector<TrainerTensor>& tensors) const;

  Names names_;
  GatedDeltaSizes sizes_;
};

}  // namespace weightcast
