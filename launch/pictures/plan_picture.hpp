#pragma once

#include <string>

#include "plan/plan.hpp"

namespace weightcast {

/// A plan as SVG: who receives how much from whom, what each link carries, and which links are busy in which
/// step. Ranks are put together where there are many: trainers in runs of 8, 16, … and the engine's ranks of
/// one replica likewise, because all replicas are served alike. `model` is what to call the model, from
/// anywhere.
std::string plan_picture(const Plan& plan, const std::string& model);

}  // namespace weightcast
