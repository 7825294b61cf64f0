#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// One tensor that every rank holds whole: the weight of a norm, a router.
class Replicated final : public Block {
 public:
  Replicated(Names names, Shape shape);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  Shape shape_;
};

}  // namespace weightcast
