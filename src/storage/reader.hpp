#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/shape.hpp"
#include "storage/checkpoint.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

/// A byte of a checkpoint's files.
struct FilePlace {
  std::uint32_t file = 0;  ///< index into Checkpoint::files
  std::int64_t offset = 0;
};

/// Reads boxes of a checkpoint's tensors. Files are opened on first use and kept open; one that is no longer
/// the file whose header was read is refused. All methods may be called from several threads at once; what
/// needs the HDF5 library is serialised inside.
class CheckpointReader {
 public:
  /// `checkpoint` must outlive the reader.
  explicit CheckpointReader(const Checkpoint& checkpoint);
  ~CheckpointReader();
  CheckpointReader(const CheckpointReader&) = delete;
  CheckpointReader& operator=(const CheckpointReader&) = delete;

  /// Reads `box` of the tensor's matrix view into `to`, row-major without gaps, in the stored dtype.
  /// `to.size()` must be box.area() × element bytes. Whole rows are one positional read; column cuts read
  /// runs of whole rows through a bounded scratch buffer (at most kScratchBytes a call) and pick the columns
  /// from there. Throws IoError naming file and tensor when the system refuses or the file ends early.
  void read(const StoredTensor& tensor, const Box& box, std::span<std::byte> to) const;

  /// Fills `parts`, one after the other, from there on: tensors, or runs of them, that are neighbours in the
  /// file. Throws IoError naming the file and the part where the system refuses or the file ends.
  void read(const FilePlace& place, std::span<const ReadPart> parts) const;

  /// Throws IoError when a file that was opened has changed since its header was read, or a text of the
  /// checkpoint since that was. To be called after the last read: only then is what was read known to be of
  /// one state of the file (as far as FileIdentity tells).
  void require_unchanged() const;

  static constexpr std::int64_t kScratchBytes = std::int64_t{256} << 10;

 private:
  struct Files;
  std::unique_ptr<Files> files_;
};

}  // namespace weightcast
