#pragma once

#include <cstdint>
#include <string_view>

namespace weightcast {

/// The formats that files of tensors are written in.
enum class FileFormat : std::uint8_t { kHdf5, kSafetensors };

/// What names of such files end with.
constexpr std::string_view file_extension(FileFormat format) {
  return format == FileFormat::kHdf5 ? ".h5" : ".safetensors";
}

/// How options name the format.
constexpr std::string_view file_format_name(FileFormat format) {
  return format == FileFormat::kHdf5 ? "hdf5" : "safetensors";
}

}  // namespace weightcast
