#pragma once

#include "core/dtype.hpp"
#include "model/blocks/block.hpp"

namespace weightcast {

struct ExpertSizes {
  std::int64_t hidden = 0;
  std::int64_t inner = 0;
  std::int64_t experts = 0;
  DType dtype = DType::kBF16;
  // What checkpoints call an expert's matrices.
  const char* gate = "gate_proj";
  const char* up = "up_proj";
  const char* down = "down_proj";

  /// Bytes of the values of one expert.
  std::int64_t expert_bytes() const { return 3 * hidden * inner * dtype_bytes(dtype); }
};

/// The gated experts of a layer, without their router: each is gate_proj, up_proj [inner, hidden] and
/// down_proj [hidden, inner]. Engines stack those of a rank's slots as `w13_weight` and `w2_weight`.
class RoutedExperts final : public Block {
 public:
  /// `names` are `mlp.experts` in checkpoints, engines and trainers, all without a dot.
  RoutedExperts(Names names, const ExpertSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  /// Throws UsageError for what the MoE layout or the quantiser does not take, too.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;
  /// Stacked, as transformers 5 keeps experts: rows of `experts.gate_up_proj` [E, 2I, H] (gate rows first) or
  /// of `experts.down_proj` [E, H, I].
  std::optional<StoredForm> other_stored_form(const Site& site, const Tensor& tensor) const override;

 private:
  Names names_;
  ExpertSizes sizes_;
};

}  // namespace weightcast
