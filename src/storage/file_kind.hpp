#pragma once

#include <filesystem>
#include <string_view>

#include "storage/writer.hpp"

namespace weightcast {

/// What a file of this program says that it is, in its attribute `weightcast.kind`.
inline constexpr std::string_view kShardKind = "shard";
inline constexpr std::string_view kTrainerKind = "trainer";

inline constexpr std::string_view kCheckpointKind = "checkpoint";

/// Whether something is a regular file, and HDF5 or safetensors, that says that it is of that kind. What
/// others have put under a name of this program's files is not, whatever it is, and must not be removed.
/// Throws IoError when that cannot be found out, also because an HDF5 file is damaged.
bool is_file_of_kind(const std::filesystem::path& path, std::string_view kind);

/// Whether a safetensors file of a checkpoint is one that this program wrote. Throws IoError as above.
bool is_own_model_file(const std::filesystem::path& path);

/// Throws IoError for a name under which somebody else's file lies, which must not be replaced: what is not
/// of that kind.
void require_free_or_own(const std::filesystem::path& path, std::string_view kind);

/// The same of a file that is written with these attributes, if they name a kind.
void require_free_or_own(const std::filesystem::path& path, const Attributes& attributes);

/// The error for somebody else's file.
[[noreturn]] void refuse_foreign(const std::filesystem::path& path);

/// Whether nothing has that name. Throws IoError when that cannot be found out.
bool is_free(const std::filesystem::path& path);

}  // namespace weightcast
