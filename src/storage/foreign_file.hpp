#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weightcast {

/// How many bytes of a file `describe_foreign` wants to see.
inline constexpr std::size_t kForeignBytes = 512;

/// What a file is that was taken for a checkpoint or a config and is neither, by its first bytes, and what to
/// do about it: `it is a Git LFS pointer, not the file itself; run git lfs pull`. Empty when nothing is
/// recognised.
std::string describe_foreign(std::string_view first_bytes);

/// The same of what should be weights and no text: any other text is quoted.
std::string describe_no_weights(std::string_view first_bytes);

/// The whole of a JSON file of `most_bytes` at most, not yet parsed. Throws IoError naming it, InputError
/// when it is larger or some other kind of file.
std::string read_json_file(const std::string& path, std::size_t most_bytes);

}  // namespace weightcast
