#include "model/blocks/block.hpp"

namespace weightcast {

void Block::add_trainer_tensors(const Site& /*site*/, const TrainerCut& /*cut*/,
                                std::vector<TrainerTensor>& /*tensors*/) const {}

void Block::add_trainer_experts(const Site& /*site*/, const TrainerExpertCut& /*cut*/,
                                std::vector<TrainerTensor>& /*tensors*/) const {}

std::optional<StoredForm> Block::other_stored_form(const Site& /*site*/, const Tensor& /*tensor*/) const {
  return std::nullopt;
}

bool Block::is_engines_own(const Site& /*site*/, std::string_view /*parameter*/) const {
  return false;
}

std::optional<std::string> Block::copy_of(std::string_view /*stored_name*/) const {
  return std::nullopt;
}

}  // namespace weightcast
