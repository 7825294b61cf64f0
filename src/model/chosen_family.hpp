#pragma once

#include <memory>
#include <vector>

#include "model/family.hpp"

namespace weightcast {

/// A model of whose tensors only some are sent: those of `whole` for which `chosen`, by their numbers in its
/// catalog, says so. The catalog has these alone. A parameter that none of them feeds is not listed; of one
/// that some feed the bytes of the others are untouched, and its padding is written as ever. Stored tensors
/// that `leaves_out` names are accepted and not read, whether the model knows them or not. When all are
/// chosen, it is `whole` but for that. Throws UsageError when codes are chosen without their scales;
/// parameters() throws it when of tensors that share one scale only some are.
std::unique_ptr<Family> make_chosen_family(std::unique_ptr<Family> whole, const std::vector<bool>& chosen,
                                           LeavesOut leaves_out);

}  // namespace weightcast
