#pragma once

#include <filesystem>
#include <string_view>

namespace weightcast {

/// What a file of this program says that it is, in its attribute `weightcast.kind`.
inline constexpr std::string_view kShardKind = "shard";
inline constexpr std::string_view kTrainerKind = "trainer";

/// Whether something is a regular file, and HDF5 or safetensors, that says that it is of that kind. What
/// others have put under a name of this program's files is not, whatever it is, and must not be removed.
bool is_file_of_kind(const std::filesystem::path& path, std::string_view kind);

}  // namespace weightcast
