#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace weightcast {

/// `rank-3.h5`: the file of one inference rank.
std::string shard_name(std::int64_t rank);

/// The rank of such a name; nothing for another name.
std::optional<std::int64_t> rank_of_shard(std::string_view name);

}  // namespace weightcast
