#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/shape.hpp"
#include "storage/checkpoint.hpp"
#include "storage/hdf5_chunks.hpp"
#include "storage/hdf5_file.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {

/// Reads boxes of one HDF5 file's datasets through the library, which decompresses them, gathers their chunks
/// and swaps their bytes. Use and destroy under an Hdf5Lock.
class Hdf5SlabReader {
 public:
  /// Throws IoError or InputError naming the file, also when it is no longer the one that was described.
  explicit Hdf5SlabReader(const CheckpointFile& file);

  /// Reads a box of a tensor's matrix view, row-major without gaps. Throws IoError naming file and dataset.
  void read(const StoredTensor& tensor, const Box& box, std::span<std::byte> to);

 private:
  void open(const StoredTensor& tensor);

  std::string path_;
  std::int64_t file_bytes_ = 0;
  Hdf5File file_;
  Hdf5Properties access_;
  std::string name_;  // of the dataset that is open: neighbouring boxes often share its cached chunks
  std::string subject_;
  Hdf5Dataset dataset_;
  std::optional<Hdf5Chunks> chunks_;  // of that dataset, if it has filters
  Hdf5Type memory_type_;
};

}  // namespace weightcast
