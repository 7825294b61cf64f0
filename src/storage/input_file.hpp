#pragma once

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
  std::int64_t size() const { return size_; }

  /// Fills `to` from `offset` on. Throws IoError naming the file and `what` (what is being read) when the
  /// system refuses or the file ends early.
  void read_at(std::int64_t offset, std::span<std::byte> to, std::string_view what) const;

  /// The same for bytes that lie one behind the other in the file and go to several places.
  void read_at(std::int64_t offset, std::span<const ReadPart> parts) const;

 private:
  std::string path_;
  int fd_ = -1;
  std::int64_t size_ = 0;
};

/// Far above the largest index of a checkpoint.
inline constexpr std::int64_t kMostTextBytes = std::int64_t{256} << 20;

/// The whole of a small text file. Throws IoError naming it, InputError when it has more bytes than `most`.
std::string read_text_file(const std::string& path, std::int64_t most = kMostTextBytes);

/// The system's words for an errno value.
std::string system_error_text(int error);

}  // namespace weightcast
