#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"

namespace weightcast {

/// A tensor as a file holds it.
struct StoredTensor {
  /// Offset of a tensor that only the HDF5 library can read (chunked, compressed, or of a foreign byte
  /// order).
  static constexpr std::int64_t kThroughLibrary = -1;

  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  std::uint32_t file = 0;   ///< index into Checkpoint::files
  std::int64_t offset = 0;  ///< bytes from the file's start to the row-major little-endian data

  std::int64_t bytes() const { return shape.elements() * dtype_bytes(dtype); }
};

/// What the headers of a checkpoint say: enough to read any slice of any tensor, small enough to broadcast.
struct Checkpoint {
  std::string path;                   ///< what the user named
  std::vector<std::string> files;     ///< every data file, absolute or relative to the working directory
  std::vector<StoredTensor> tensors;  ///< sorted by name; names are unique
  /// `weightcast.weight_version`: an attribute in HDF5, an entry of `__metadata__` in safetensors.
  std::optional<std::int64_t> weight_version;

  /// The tensor of that name, or nullptr.
  const StoredTensor* find(std::string_view name) const;
};

/// Reads the headers of a checkpoint: a directory of safetensors files (with or without
/// `model.safetensors.index.json`), a directory with one `.h5` file, one `.safetensors` file, or one HDF5
/// file. In a directory only the model's own files count: with an index those it names, else
/// `model*.safetensors`. Throws IoError when a path cannot be read, InputError (naming file and tensor) when
/// its content is wrong: truncated, overlapping or out-of-range tensors, a header longer than the file, not
/// HDF5, an unsupported dtype, files of several weight versions.
Checkpoint read_checkpoint(const std::string& path);

/// `config.json` beside a checkpoint: in the directory, or in the file's directory. An HDF5 checkpoint may
/// instead carry its text in the root attribute `weightcast.config`. Throws IoError naming `--model` when
/// there is none.
std::string read_config_text(const std::string& checkpoint_path);

/// A checkpoint's headers as bytes, for a broadcast from the rank that read them, and back.
std::vector<std::byte> serialize(const Checkpoint& checkpoint);
Checkpoint deserialize_checkpoint(std::span<const std::byte> bytes);

}  // namespace weightcast
