#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct PlainExpertSizes {
  std::int64_t hidden = 0;  ///< of what goes into an expert
  std::int64_t inner = 0;
  std::int64_t experts = 0;
};

/// The routed experts of a layer without gates: each is up_proj [inner, hidden] and down_proj [hidden,
/// inner]. Engines stack those of a rank's slots as `w13_weight` [El, It, H], which is up alone, and
/// `w2_weight` [El, H, It].
class PlainExperts final : public Block {
 public:
  /// `names` are `mixer.experts` in checkpoints and engines, `mlp.experts` at trainers, all without a dot.
  PlainExperts(Names names, const PlainExpertSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  /// Throws UsageError for a MoE layout that is not `triton`, and for a quantiser, too.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;
  /// Stacked, as transformers 5 keeps experts: rows of `experts.up_proj` [E, I, H] or of `experts.down_proj`
  /// [E, H, I].
  std::optional<StoredForm> other_stored_form(const Site& site, const Tensor& tensor) const override;

 private:
  Names names_;
  PlainExpertSizes sizes_;
};

}  // namespace weightcast
