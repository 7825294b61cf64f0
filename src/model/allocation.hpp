#pragma once

#include <string>
#include <string_view>

#include "model/engine.hpp"
#include "model/trainer.hpp"

namespace weightcast {

// The notation in which RL frameworks write who runs how: letters with sizes, absent = 1. All functions throw
// UsageError naming `option`, the text and the place in it for what cannot be read, and for sizes that do not
// fit one another.

/// `sglang:d4p1t4e2` or `vllm:…`: d replicas of p stages × t tensor-parallel ranks; e (an extension) cuts
/// experts e ways inside t. `vllm:(attn:d8t1|ffn:e8)`, parentheses optional, is an engine with data-parallel
/// attention: over the same ranks attention is cut t ways and repeated d times, and experts are cut e ways,
/// each t ways inside. ffn's d says how often experts are there in full, and so how many replicas these are;
/// d·t of attn and d·t·e of ffn are equal. `hf` or `hf:d4`: d replicas of the whole model, as a Hugging Face
/// module has it.
EngineLayout parse_inference_allocation(const std::string& option, std::string_view text);

/// `megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)`, parentheses optional, or flat `megatron:d2p1t4e2`, where expert
/// tensors are not cut. An absent ffn p is that of attn, an absent ffn d follows from the number of ranks.
TrainerLayout parse_trainer_allocation(const std::string& option, std::string_view text);

struct Allocation {
  EngineLayout inference;
  TrainerLayout trainers;
};

/// Both, joined by `+`, in either order.
Allocation parse_allocation(const std::string& option, std::string_view text);

}  // namespace weightcast
