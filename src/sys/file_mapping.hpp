#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

/// The first bytes of a file, mapped and shared with whoever else has mapped it. Another process may cut the
/// file while it is read or written here. An access behind its end would end this process by SIGBUS; instead
/// everything from there on becomes memory of this process alone, zeros at first, and has_shrunk() says so.
class FileMapping {
 public:
  /// Throws std::system_error when the system refuses. `file` may be closed afterwards; a descriptor of the
  /// file stays open, with which all record locks that the process has on it go.
  FileMapping(int file, std::int64_t bytes, bool writable);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

  /// Takes room for that part of a file that has none there yet. Throws std::system_error where there is
  /// none.
  void reserve(std::int64_t offset, std::int64_t bytes);

  /// Whether the file is shorter than what was mapped, or an access has met a part that is no more, be it
  /// there again; the system reads for others, too, who learn of it otherwise. Callable from several threads.
  bool has_shrunk() const;

  /// A mapping as the handler of SIGBUS finds it.
  struct Place;

 private:
  int file_;
  std::byte* data_;
  std::int64_t bytes_;
  Place* place_;
};

}  // namespace weightcast
