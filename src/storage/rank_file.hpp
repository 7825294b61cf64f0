#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "storage/file_format.hpp"

namespace weightcast {

/// The file of one rank among those of others, as its name says it: `rank-3.h5`, `trainer-3.safetensors`.
struct RankFile {
  std::int64_t rank = 0;
  FileFormat format = FileFormat::kHdf5;

  friend bool operator==(const RankFile& a, const RankFile& b) = default;
};

/// What precedes the number in the names of inference ranks' shards, and of trainers' shards.
inline constexpr std::string_view kShardStem = "rank-";
inline constexpr std::string_view kTrainerStem = "trainer-";

std::string rank_file_name(std::string_view stem, const RankFile& file);

/// What such a name says; nothing for another name.
std::optional<RankFile> parse_rank_file(std::string_view stem, std::string_view name);

/// The path of a rank's file in a folder, in the format that it has there. Throws InputError when there is
/// one in each format, IoError when there is none, or this process may not know.
std::string existing_rank_file(const std::string& directory, std::string_view stem, std::int64_t rank);

}  // namespace weightcast
