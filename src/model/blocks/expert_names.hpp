#pragma once

#include <functional>
#include <string>

#include "model/blocks/block.hpp"

namespace weightcast {

// What blocks of routed experts have in common.

/// The module inside of an engine's experts that holds their weights: none in SGLang, one in vLLM since 0.24.
const char* experts_module(Engine engine);

/// `model.layers.0.mlp.experts.3.up_proj.weight`
std::string expert_weight(const std::string& experts, std::int64_t expert, const char* matrix);

/// Throws UsageError for a MoE layout other than `triton` and for a quantiser: `experts` are `unlike` those
/// that are laid out and quantised.
void require_triton(const EngineLayout& layout, const std::string& experts, const char* unlike);

/// One expert of a trainer's rank: its number in the layer, and what trainers call its matrices where experts
/// are grouped and where they stand alone.
struct TrainerExpert {
  std::int64_t number = 0;
  std::string experts;  ///< the trainer's name for all of them
  std::int64_t number_there = 0;

  std::string grouped(const char* matrix) const;
  std::string alone(const char* matrix) const;
};

/// Calls `each` with the experts that a trainer's rank has of `experts` ones, which the catalog calls `from`
/// and the trainer `at`. Throws UsageError where they cannot be dealt evenly.
void for_each_trainer_expert(const TrainerExpertCut& cut, const std::string& from, const std::string& at,
                             std::int64_t experts, const std::function<void(const TrainerExpert&)>& each);

/// Throws UsageError: what trainers hold of these experts is not known.
[[noreturn]] void refuse_trainer_experts(const TrainerExpertCut& cut, const std::string& experts);

}  // namespace weightcast
