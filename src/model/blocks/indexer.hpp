#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct IndexerSizes {
  std::int64_t hidden = 0;
  std::int64_t query_rank = 0;  ///< of the latent queries of the attention
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
};

/// What chooses the tokens that a sparse attention looks at. Every rank has it whole; engines keep the norm
/// of its keys in float32.
class Indexer final : public Block {
 public:
  /// `names` are what stands before `wq_b` and `linear_wq_b`. A layer that is not `own` uses the choice of
  /// one before it: it has no tensors, and what an engine has there is never written.
  Indexer(Names names, const IndexerSizes& sizes, bool own);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;
  bool is_engines_own(const Site& site, std::string_view parameter) const override;

 private:
  Names names_;
  IndexerSizes sizes_;
  bool own_;
};

}  // namespace weightcast
