#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// A vector with some elements for each head of an attention: a norm over all of them, or one number for
/// each. A rank has those of its heads; with more ranks than heads neighbouring ranks share one.
class HeadVector final : public Block {
 public:
  HeadVector(Names names, std::int64_t heads, std::int64_t head_dim);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  std::int64_t heads_;
  std::int64_t head_dim_;
};

}  // namespace weightcast
