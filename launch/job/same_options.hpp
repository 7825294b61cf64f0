#pragma once

#include <map>
#include <string>
#include <vector>

#include "control/control.hpp"

namespace weightcast {

/// What a rank was given, as Options::alike.
using GivenOptions = std::map<std::string, std::string>;

/// Fails (by agreement) with a UsageError that names an option and two ranks unless all ranks were given the
/// same. Collective.
void require_same_options(Control& control, const GivenOptions& mine);

/// Where what ranks were given differs first, and the remedy, as a line; `all` is by rank, and not all equal.
std::string difference_of(const std::vector<GivenOptions>& all);

}  // namespace weightcast
