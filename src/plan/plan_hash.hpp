#pragma once

#include <cstdint>

#include "model/family.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// The hash of a plan's inputs and of everything in it but Plan::hash, which ranks compare.
std::uint64_t hash_plan(const Plan& plan, const Family& family);

}  // namespace weightcast
