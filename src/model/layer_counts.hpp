#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast {

/// Reads the layers of every stage, `12,14,14,12`. Throws UsageError naming `option` for anything else.
std::vector<std::int64_t> parse_layer_counts(const std::string& option, std::string_view text);

}  // namespace weightcast
