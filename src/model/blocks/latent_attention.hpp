#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct LatentAttentionSizes {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t query_rank = 0;  ///< of the latent queries; 0: queries are projected at once
  std::int64_t kv_rank = 0;     ///< of the latent keys and values
  std::int64_t nope_dim = 0;    ///< of a head's query and key without position
  std::int64_t rope_dim = 0;    ///< of the part with it, which all heads' keys share
  std::int64_t value_dim = 0;
};

/// Multi-head latent attention: projections to latent vectors, which every rank has whole, norms of those,
/// and projections from them to heads, which are cut by head. Engines fuse the first ones of queries and of
/// keys.
class LatentAttention final : public Block {
 public:
  /// `names` are what stands before `q_a_proj` and `linear_q_down_proj`: `self_attn.`, `self_attention.`.
  LatentAttention(Names names, const LatentAttentionSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  /// Trainers that have cut the first projections, too, are not known.
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  LatentAttentionSizes sizes_;
};

}  // namespace weightcast
