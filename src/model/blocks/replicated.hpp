#pragma once

#include "model/blocks/block.hpp"

namespace weightcast {

/// One tensor that every rank holds whole: the weight of a norm, a router.
class Replicated final : public Block {
 public:
  enum class Type : std::uint8_t {
    kModel,          ///< the model's
    kWidened,        ///< the model's; float32 in engines that fuse and cut
    kWidenedByVllm,  ///< float32 in vLLM alone; SGLang keeps the model's, beside a copy of its own or none
    kFloat32,        ///< float32, whatever the model's is; checkpoints may have bfloat16
  };

  Replicated(Names names, Shape shape, Type type = Type::kModel);

  void list(const Site& site, TensorList& tensors) const override;
  void add_parameters(const Site& site, const EngineCut& cut,
                      std::vector<Parameter>& parameters) const override;
  void add_trainer_tensors(const Site& site, const TrainerCut& cut,
                           std::vector<TrainerTensor>& tensors) const override;
  std::optional<StoredForm> other_stored_form(const Site& site, const Tensor& tensor) const override;

 private:
  Names names_;
  Shape shape_;
  Type type_;
};

}  // namespace weightcast
