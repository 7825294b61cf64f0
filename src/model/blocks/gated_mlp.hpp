#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct MlpSizes {
  std::int64_t hidden = 0;
  std::int64_t inner = 0;
  bool bias = false;
  bool fused = false;   ///< checkpoints have one gate_up_proj [2 · inner, hidden], gate first
  bool shared = false;  ///< experts that every token passes, beside routed ones
};

/// gate_proj and up_proj [inner, hidden], which engines and trainers fuse, and down_proj [hidden, inner].
class GatedMlp final : public Block {
 public:
  /// `names` are what stands before `gate_proj`, `gate_up_proj` and `linear_fc1`: `mlp.`.
  GatedMlp(Names names, const MlpSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  /// What gate and up are fused to under the name `to`; `kind` is `.weight` or `.bias`.
  Parameter gate_up(const TensorParallel& cut, const std::string& to, const Site& site,
                    const std::string& kind) const;

  Names names_;
  MlpSizes sizes_;
};

}  // namespace weightcast
