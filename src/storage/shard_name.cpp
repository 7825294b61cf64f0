#include "storage/shard_name.hpp"

#include <fmt/format.h>

#include <charconv>

namespace weightcast {

namespace {

constexpr std::string_view kStem = "rank-";

}  // namespace

std::string shard_name(std::int64_t rank) {
  return fmt::format("{}{}.h5", kStem, rank);
}

std::optional<std::int64_t> rank_of_shard(std::string_view name) {
  std::int64_t rank = -1;
  if (name.starts_with(kStem)) std::from_chars(name.data() + kStem.size(), name.data() + name.size(), rank);
  return rank >= 0 && name == shard_name(rank) ? std::optional(rank) : std::nullopt;
}

}  // namespace weightcast
