#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/blocks/block.hpp"

namespace weightcast {

// What blocks of routed experts have in common.

/// The module inside of an engine's experts that holds their weights: none in SGLang, one in vLLM since 0.24.
const char* experts_module(Engine engine);

/// `model.layers.0.mlp.experts.3.up_proj.weight`
std::string expert_weight(const std::string& experts, std::int64_t expert, const char* matrix);

/// What an engine rank keeps of experts that are put into layout `triton` alone.
struct HeldExperts {
  std::vector<std::int64_t> numbers;  ///< in the layer, in the order of slots
  std::int64_t start = 0;             ///< of the rank's part of their inner size
  std::int64_t inner = 0;             ///< and its elements
  std::string module;                 ///< the engine's name for what holds their weights, without a dot
};

/// Of one layer's `experts`, of inner size `inner`. Throws UsageError for a MoE layout other than `triton`
/// and for a quantiser, because these experts are `unlike` those that are laid out and quantised, and where
/// the engine's layout does not divide them.
HeldExperts held_experts(const Site& site, const Names& names, const EngineCut& cut, std::int64_t experts,
                         std::int64_t inner, const char* unlike);

/// One expert of a trainer's rank: its number in the layer, and what trainers call its matrices where experts
/// are grouped and where they stand alone.
struct TrainerExpert {
  std::int64_t number = 0;
  std::string experts;  ///< the trainer's name for all of them
  std::int64_t number_there = 0;

  /// `kind`: `weight`, or `bias`.
  std::string grouped(const char* matrix, const char* kind = "weight") const;
  std::string alone(const char* matrix, const char* kind = "weight") const;
};

/// Calls `each` with the experts that a trainer's rank has of `experts` ones, which the catalog calls `from`
/// and the trainer `at`. Throws UsageError where they cannot be dealt evenly.
void for_each_trainer_expert(const TrainerExpertCut& cut, const std::string& from, const std::string& at,
                             std::int64_t experts, const std::function<void(const TrainerExpert&)>& each);

}  // namespace weightcast
