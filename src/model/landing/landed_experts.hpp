#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/landing/landing_map.hpp"
#include "model/parameter.hpp"

namespace weightcast {

/// Throws UsageError for a layout of experts, or a quantiser, that is not known to go on top of what an
/// engine's loader has done.
void require_expert_layout(const EngineLayout& layout);

/// The experts of a landed parameter as `layout.moe_layout` has them, every one padded for itself. `numbers`
/// are those that the map's tensors have in the catalog. Throws UsageError when the kernels cannot read such
/// sizes, InputError, which begins with `origin`, where a gate, an up or a down is not one box of one tensor.
Parameter place_experts(const LandedParameter& landed, const std::vector<std::uint32_t>& numbers,
                        const Catalog& catalog, const EngineLayout& layout, const std::string& origin);

}  // namespace weightcast
