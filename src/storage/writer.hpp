#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"
#include "storage/file_format.hpp"
#include "storage/hidden_names.hpp"
#include "storage/replacement.hpp"

namespace weightcast {

/// What precedes the name of every attribute that this program writes or reads.
inline constexpr std::string_view kAttributePrefix = "weightcast.";

/// Attributes of a file's root: integers and texts, by name without the prefix that they have there.
using Attributes = std::map<std::string, std::variant<std::int64_t, std::string>>;

/// One dataset to be written.
struct DatasetSpec {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;

  std::int64_t bytes() const { return shape.elements() * dtype_bytes(dtype); }
};

/// A set of files that appears whole or not at all: data goes to hidden names beside the final ones;
/// `commit()`, or the steps of a Replacement, put them in place; whatever fails or ends before that leaves
/// what was there before untouched.
class TensorFileWriter : public Replacement {
 public:
  /// Writes part of dataset number `index` (order of the specs), from `offset` bytes on. Callable from
  /// several threads for disjoint ranges. Throws IoError naming the file.
  virtual void write(std::size_t index, std::int64_t offset, std::span<const std::byte> data) = 0;

  /// Flushes everything to the disk (fsync) without renaming. Throws IoError.
  virtual void flush() = 0;

  /// Flushes what was written since the last flush, and gives the files their final names, all or none.
  /// Nothing is written afterwards. Throws IoError.
  void commit();
};

/// One HDF5 file of contiguous datasets at the root, named verbatim ('/' cannot occur in a name), with
/// attribute `weightcast.dtype` each; space is reserved on the disk up front, so a full disk shows here and
/// not half-way. Missing folders are made. Bytes that nobody writes are zero. Throws IoError when the system
/// refuses, InputError naming the dataset when a name or shape cannot be written. Files that are replaced
/// together have one `id`. Where the attributes name a kind, a file that has the path and is not of that kind
/// is refused (IoError).
std::unique_ptr<TensorFileWriter> create_hdf5(const std::string& path, const Attributes& attributes,
                                              const std::vector<DatasetSpec>& datasets,
                                              const std::string& id = fresh_id());

/// A Hugging Face directory: `model.safetensors`, or several `model-0000i-of-0000n.safetensors` of at most
/// `max_file_bytes` of data (one tensor is never split) with `model.safetensors.index.json`, and
/// `config.json` unless `config_text` is empty. Every data file says in `__metadata__` the weight version, if
/// there is one, and `conversion`, which tells the files of this checkpoint from those of another. With the
/// new files taking their names those of an earlier checkpoint in that folder go that would be read beside
/// them; those of somebody else are refused (IoError). Missing folders are made. Errors as with HDF5.
std::unique_ptr<TensorFileWriter> create_safetensors(
    const std::string& directory, const std::string& config_text, const std::vector<DatasetSpec>& datasets,
    std::int64_t max_file_bytes, std::optional<std::int64_t> weight_version = std::nullopt,
    const std::string& conversion = fresh_id());

/// One safetensors file with the attributes as texts in its `__metadata__`. Errors as with HDF5.
std::unique_ptr<TensorFileWriter> create_safetensors_file(const std::string& path,
                                                          const Attributes& attributes,
                                                          const std::vector<DatasetSpec>& datasets,
                                                          const std::string& id = fresh_id());

/// One file in either format.
std::unique_ptr<TensorFileWriter> create_tensor_file(FileFormat format, const std::string& path,
                                                     const Attributes& attributes,
                                                     const std::vector<DatasetSpec>& datasets,
                                                     const std::string& id = fresh_id());

}  // namespace weightcast
