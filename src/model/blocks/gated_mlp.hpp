#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// gate_proj and up_proj [inner, hidden], which engines and trainers fuse, and down_proj [hidden, inner].
class GatedMlp final : public Block {
 public:
  /// `names` are what stands before `gate_proj`, `gate_up_proj` and `linear_fc1`: `mlp.`.
  GatedMlp(Names names, std::int64_t hidden, std::int64_t inner, bool bias = false);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  std::int64_t hidden_;
  std::int64_t inner_;
  bool bias_;
};

}  // namespace weightcast
