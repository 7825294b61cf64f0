#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct StackedExpertSizes {
  std::int64_t hidden = 0;
  std::int64_t inner = 0;
  std::int64_t experts = 0;
};

/// Gated routed experts that checkpoints store stacked: `gate_up_proj` [E, 2I, H], of each expert gate rows
/// first, and `down_proj` [E, H, I]. Engines keep `w13_weight` [El, 2It, H], each half cut, and `w2_weight`
/// [El, H, It].
class StackedExperts final : public Block {
 public:
  /// `names` are `experts`, without a dot.
  StackedExperts(Names names, const StackedExpertSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  /// Throws UsageError for a MoE layout that is not `triton`, and for a quantiser, too.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  StackedExpertSizes sizes_;
};

}  // namespace weightcast
