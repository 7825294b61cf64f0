#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"
#include "core/shape.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

/// Why the program cannot read a tensor that a file lists. Such a tensor does no harm where nobody needs it.
struct Obstacle {
  /// Its type and shape as the file has them: `C64 [8]`.
  std::string form;
  /// What follows the tensor's name in a sentence: `has elements of C64, which are not read`.
  std::string why;
  /// Its bytes are not there; otherwise they have a form that the program does not know.
  bool lost = false;
};

/// A tensor as a file holds it.
struct StoredTensor {
  /// Offset of a tensor that only the HDF5 library can read (chunked, compressed, or of a foreign byte
  /// order).
  static constexpr std::int64_t kThroughLibrary = -1;
  /// Offset of a virtual dataset: the library may read from any file of the checkpoint.
  static constexpr std::int64_t kVirtual = -2;

  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
  std::uint32_t file = 0;      ///< index into Checkpoint::files
  std::int64_t offset = 0;     ///< bytes from the file's start to the row-major little-endian data
  std::string path;            ///< of a dataset inside its HDF5 file, where that is not its name
  std::int64_t object = 0;     ///< address of a dataset in its HDF5 file, one for all its names; 0 elsewhere
  bool feeds_virtual = false;  ///< a virtual dataset of the checkpoint is read from it
  std::shared_ptr<const Obstacle> obstacle;  ///< null for a tensor that can be read

  std::int64_t bytes() const { return shape.elements() * dtype_bytes(dtype); }

  bool through_library() const { return offset < 0; }

  /// What its dataset is called in an HDF5 file.
  const std::string& dataset() const { return path.empty() ? name : path; }
};

/// Whether two tensors of a checkpoint are known to be the same bytes of the same file.
bool same_bytes(const StoredTensor& a, const StoredTensor& b);

/// A data file as it was when its header was read, or a text beside the data as it was when it was read.
struct CheckpointFile {
  std::string path;  ///< absolute or relative to the working directory
  FileIdentity identity;
  std::uint64_t header_hash = 0;  ///< of what says where tensors lie, to recognise a copy on another host

  friend bool operator==(const CheckpointFile& a, const CheckpointFile& b) = default;
};

/// What the headers of a checkpoint say: enough to read any slice of any tensor, small enough to broadcast.
struct Checkpoint {
  std::string path;                   ///< what the user named
  std::string host;                   ///< where its headers were read
  std::vector<CheckpointFile> files;  ///< every data file
  std::vector<StoredTensor> tensors;  ///< sorted by name; names are unique
  /// What must be of the same saving and was read, too: the index, and what the model's config was made of.
  /// The process that has read them compares them; they are not broadcast.
  std::vector<CheckpointFile> texts;
  /// `weightcast.weight_version`: an attribute in HDF5, an entry of `__metadata__` in safetensors.
  std::optional<std::int64_t> weight_version;
  /// `weightcast.conversion`: the id that all safetensors files of one conversion have, empty without one.
  std::string conversion;

  /// The tensor of that name, or nullptr.
  const StoredTensor* find(std::string_view name) const;

  /// Throws InputError naming file and tensor when the tensor cannot be read.
  void require_readable(const StoredTensor& tensor) const;
};

/// Whether an HDF5 source may have data in other files (external storage, external links, virtual datasets).
enum class OtherFiles : std::uint8_t {
  kRefused,      ///< a file from elsewhere could name any file of this machine
  kBelowFolder,  ///< only those below the source's own folder
};

/// Reads the headers of a checkpoint: a directory of safetensors files (with or without
/// `model.safetensors.index.json`), a directory with one `.h5` file, one `.safetensors` file, or one HDF5
/// file. In a directory only the model's own files count: with an index those it names and in them the
/// tensors that it lists, else `model*.safetensors`. Throws IoError when a path cannot be read or changes
/// meanwhile, InputError (naming file and tensor) when its content is wrong: truncated, overlapping or
/// out-of-range tensors, a header longer than the file, no checkpoint at all, files of several weight
/// versions or of several savings.
Checkpoint read_checkpoint(const std::string& path, OtherFiles other_files = OtherFiles::kRefused);

/// Makes a checkpoint whose headers were read on another host fit for this one: where this host has files of
/// its own under the same paths, with the same headers, those are from now on the checkpoint's. Throws
/// IoError naming a file that is another one here. Does nothing on the host where the headers were read.
void adopt_local_files(Checkpoint& checkpoint);

/// Throws IoError when a file is no longer the one whose header was read, or a text no longer what was read.
void require_files_unchanged(const Checkpoint& checkpoint);

/// The same for the texts alone.
void require_texts_unchanged(const Checkpoint& checkpoint);

/// A file as it is just before its text is read, for Checkpoint::texts. Throws IoError as InputFile does.
CheckpointFile describe_text(const std::string& path);

/// The config of a checkpoint: of an HDF5 file the text in its root attribute `weightcast.config`, else
/// `config.json` in the directory, or in the file's directory, else what the only HDF5 file of the directory
/// carries. `texts`, if given, gets the file that it is from. Nothing when there is none.
std::optional<std::string> find_config_text(const std::string& checkpoint_path,
                                            std::vector<CheckpointFile>* texts = nullptr);

/// The same; throws IoError naming `--model` when there is none.
std::string read_config_text(const std::string& checkpoint_path,
                             std::vector<CheckpointFile>* texts = nullptr);

/// A checkpoint's headers as bytes, for a broadcast from the rank that read them, and back: all but its
/// texts.
std::vector<std::byte> serialize(const Checkpoint& checkpoint);
Checkpoint deserialize_checkpoint(std::span<const std::byte> bytes);

}  // namespace weightcast
