#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

struct Mamba2Sizes {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t groups = 0;  ///< of heads that share B and C
  std::int64_t state = 0;
  std::int64_t kernel = 0;  ///< of the convolution
  bool conv_bias = true;

  /// The width of z and of x.
  std::int64_t inner() const { return heads * head_dim; }
  /// Of B and of C of all groups.
  std::int64_t group_width() const { return groups * state; }
  /// Channels of the convolution: those of x, B and C.
  std::int64_t channels() const { return inner() + 2 * group_width(); }
};

/// A Mamba-2 mixer: `in_proj`, whose rows are z, x, B, C and dt, `conv1d` over x, B and C, `A_log`, `D` and
/// `dt_bias`, a norm over the inner width, and `out_proj`. Engines and trainers cut each of z, x, B, C and
/// dt. Engines have `A`, −e^A_log in float32, in place of `A_log`.
class Mamba2 final : public Block {
 public:
  /// `names` are what stands before `in_proj`: `mixer.`.
  Mamba2(Names names, const Mamba2Sizes& sizes);

  void list(const Site& site, TensorList& tensors) const override;
  /// An engine's ranks that are more than the groups each have all of the one group; throws UsageError where
  /// there are several.
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  /// Of `tensor`, whose first row is z's or x's: the parts that are cut one by one.
  std::vector<TensorParallel::Section> sections(const std::string& tensor, bool projected,
                                                bool whole_groups) const;

  Names names_;
  Mamba2Sizes sizes_;
};

}  // namespace weightcast
