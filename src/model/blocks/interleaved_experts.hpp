#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct InterleavedExpertSizes {
  std::int64_t hidden = 0;
  std::int64_t inner = 0;
  std::int64_t experts = 0;
};

/// Routed experts that checkpoints store stacked and transposed, with biases: `gate_up_proj` [E, H, 2I],
/// whose columns are gate and up in turn, and `down_proj` [E, I, H]. Engines keep `w13_weight` [El, 2It, H],
/// gate and up in turn as they are, and `w2_weight` [El, H, It]. Trainers have of each expert `linear_fc1`
/// [2I, H], gate rows above up rows, and `linear_fc2` [H, I], with biases, none of them cut.
class InterleavedExperts final : public Block {
 public:
  /// `names` are `mlp.experts`, without a dot.
  InterleavedExperts(Names names, const InterleavedExpertSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  /// Throws UsageError for a MoE layout that is not `triton`, and for a quantiser, too.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  InterleavedExpertSizes sizes_;
};

}  // namespace weightcast
