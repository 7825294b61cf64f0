#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace weightcast {

/// Where some bytes of a read go, and what they are, for messages.
struct ReadPart {
  std::span<std::byte> to;
  std::string_view what;
};

/// What tells a file from another one that takes its place, and from itself after somebody has written to it.
/// A change within the clock tick (some milliseconds) of an earlier one, or one that puts the old time back,
/// does not show.
struct FileIdentity {
  std::uint64_t inode = 0;
  std::int64_t size = 0;         ///< bytes
  std::int64_t modified_ns = 0;  ///< of the last change of its content, since 1970

  friend bool operator==(const FileIdentity& a, const FileIdentity& b) = default;
};

/// A regular file opened for positional reads; threads may share it.
class InputFile {
 public:
  /// Throws IoError naming the path when it is missing, unreadable or no regular file.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::string& path() const { return path_; }

  /// The file's size in bytes when it was opened.
  std::int64_t size() const { return identity_.size; }

  /// What the file was when it was opened, and what it is now. Throws IoError when the system does not say.
  const FileIdentity& identity() const { return identity_; }
  FileIdentity identity_now() const;

  /// Whether a process of this host has the file open for writing, or mapped so that it can write: its time
  /// says when a write began, not that one is under way. False where the system does not tell.
  bool has_writer() const;

  /// Whether some of its bytes were never written. False where the system does not tell.
  bool has_holes() const;

  /// Whether a write through a mapping gives it a new time: in memory (tmpfs) none does.
  bool keeps_time_of_mappings() const;

  /// Fills `to` from `offset` on. Throws IoError naming the file and `what` (what is being read) when the
  /// system refuses or the file ends early.
  void read_at(std::int64_t offset, std::span<std::byte> to, std::string_view what) const;

  /// The same for bytes that lie one behind the other in the file and go to several places.
  void read_at(std::int64_t offset, std::span<const ReadPart> parts) const;

 private:
  std::string path_;
  int fd_ = -1;
  FileIdentity identity_;
};

/// What an open file is, by descriptor; `path` is for messages. Throws IoError when the system does not say.
FileIdentity identity_of(int descriptor, const std::string& path);
FileIdentity identity_of(const struct stat& status);

/// Whether there is something of that name, be it a link that leads nowhere. Throws IoError where this
/// process may not know.
bool is_named(const std::string& path);

/// The first bytes of a file, `most` at most. Throws IoError.
std::string first_bytes(const InputFile& file, std::int64_t most);

/// The whole of a text file of `most_bytes` at most. Throws IoError naming it, InputError when it is larger.
std::string read_text_file(const std::string& path, std::int64_t most_bytes);

/// The system's words for an errno value.
std::string system_error_text(int error);

}  // namespace weightcast
