#pragma once

#include <span>
#include <vector>

#include "kernels/move.hpp"
#include "model/catalog.hpp"
#include "model/parameter.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// Proves that every element of every tensor travels in exactly one segment and that every bucket keeps the
/// cap; throws InternalError naming the tensor otherwise.
void prove_sent_once(const Plan& plan, const Catalog& catalog);

/// Proves that `moves` write every byte of every parameter exactly once (buffer numbers are parameter
/// numbers); throws InternalError naming the parameter and the byte otherwise.
void prove_written_once(const std::vector<Parameter>& parameters, std::span<const Move> moves);

}  // namespace weightcast
