#pragma once

#include "model/blocks/interleaved_experts.hpp"

namespace weightcast {

/// The experts of InterleavedExperts in a checkpoint of MXFP4, not transposed: of each matrix codes of four
/// bits and, for each 32 of a row, the byte of an exponent, rows of gate and up in turn, and biases beside
/// them. Where checkpoints have `_blocks` [E, 2I, H/32, 16] and [E, H, I/32, 16], `_scales` [E, 2I, H/32],
/// and biases [E, 2I] and [E, H], the catalog has the same bytes with gate and up of one number in one row:
/// [E, I, H], [E, H, I/2], [E, I, 2H/32], [E, I, 2] and [E, H, 1].
///
/// Engines keep `w13_weight` [El, 2Ip, H/2] and `w2_weight` [El, H, Ip/2], scales beside them
/// (`w13_weight_scale`, `w2_weight_scale`), and biases in float32. A rank has whole groups of 32 of the inner
/// size, the last ranks fewer of them, with zeros up to Ip (vLLM's and SGLang's loaders of gpt-oss).
class Mxfp4Experts final : public Block {
 public:
  /// `names` are `mlp.experts`, without a dot. `hidden` and `inner` are multiples of 32.
  Mxfp4Experts(Names names, const InterleavedExpertSizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  /// Layout `triton` keeps gate and up in turn and pads to 64; `trtllm` shuffles them and pads the inner and
  /// the hidden size to 256. Throws UsageError for any other.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  std::optional<StoredForm> other_stored_form(const Site& site, const Tensor& tensor) const override;

 private:
  Names names_;
  InterleavedExpertSizes sizes_;
};

}  // namespace weightcast
