#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// One tensor that every rank holds whole: the weight of a norm, a router.
class Replicated final : public Block {
 public:
  enum class Type : std::uint8_t {
    kModel,    ///< the model's
    kWidened,  ///< the model's; float32 in engines that fuse and cut
    kFloat32,  ///< float32, whatever the model's is; checkpoints may have bfloat16
  };

  Replicated(Names names, Shape shape, Type type = Type::kModel);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;

 private:
  Names names_;
  Shape shape_;
  Type type_;
};

}  // namespace weightcast
