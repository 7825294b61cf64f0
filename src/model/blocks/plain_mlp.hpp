#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// An MLP without a gate: up_proj [inner, hidden] and down_proj [hidden, inner].
class PlainMlp final : public Block {
 public:
  /// `names` are what stands before `up_proj` in checkpoints and engines, and before `linear_fc1` at
  /// trainers. `shared`: they are experts that every token passes, beside routed ones.
  PlainMlp(Names names, std::int64_t hidden, std::int64_t inner, bool shared = false);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  std::int64_t hidden_;
  std::int64_t inner_;
  bool shared_;
};

}  // namespace weightcast
