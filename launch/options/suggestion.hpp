#pragma once

#include <span>
#include <string>
#include <string_view>

namespace weightcast {

/// `; did you mean sync?` where one of the names is close to what was typed: at most two letters were left
/// out, added, taken for others or swapped with their neighbour, and fewer than half. Empty otherwise.
std::string suggestion(std::string_view typed, std::span<const std::string_view> names);

}  // namespace weightcast
