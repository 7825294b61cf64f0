#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json_text.hpp"
#include "storage/checkpoint.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// The number before a header that says its bytes, and the most that the format allows a header.
inline constexpr std::int64_t kSafetensorsLengthBytes = 8;
inline constexpr std::int64_t kMostSafetensorsHeader = 100'000'000;

/// What a header or an index of so many bytes may hold: far more than the largest checkpoint's tensors need,
/// as a file of five gigabytes holds some hundreds of them.
constexpr JsonLimits safetensors_limits(std::size_t bytes) {
  return {bytes, 8, 4'000'000, true, false};
}

/// The entry of a header, and in it the one of its texts that says the weight version as a decimal number.
inline constexpr const char* kSafetensorsMetadata = "__metadata__";
inline constexpr const char* kSafetensorsVersion = "weightcast.weight_version";

/// What a file's metadata says of the saving that it belongs to.
struct SavingLabels {
  std::optional<std::int64_t> weight_version;
  std::string conversion;  ///< the id that all files of a conversion have; empty when there is none
};

/// Reads the header of one safetensors file: adds the file to the checkpoint, appends its tensors, and
/// returns what it says of its saving. The format is that of
/// https://github.com/huggingface/safetensors: 8 bytes of little-endian header length, a JSON object, data. A
/// text of the metadata that names a tensor of the file, under a name that the file lacks, is another name of
/// that tensor. Throws IoError when the file cannot be read, InputError naming file and tensor when the
/// header contradicts itself or the file's size.
SavingLabels read_safetensors_header(const std::string& path, Checkpoint& checkpoint);

/// The texts of a file's metadata that are this program's (`weightcast.…`), by name without that prefix.
/// Errors as above.
Attributes read_safetensors_attributes(const std::string& path);

}  // namespace weightcast
