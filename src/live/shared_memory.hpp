#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "live/manifest.hpp"
#include "memory/memory.hpp"

namespace weightcast {

/// What is done with an exporter's memory: it is looked at, or written, too.
enum class Access : std::uint8_t { kRead, kWrite };

/// A file of shared memory that an exporter has made.
class SharedFile {
 public:
  /// Throws IoError naming the manifest when it cannot be opened.
  SharedFile(const Manifest& manifest, const std::string& name, Access access);
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  int descriptor() const { return fd_; }

  /// Its first `bytes`, to be unmapped by the caller. Throws InputError when the file is shorter, IoError
  /// when the system refuses.
  std::byte* map(const Manifest& manifest, std::int64_t bytes) const;

 private:
  Access access_;
  int fd_;
};

/// Maps a segment; one on a GPU must be on the current device. Throws IoError when it cannot be opened,
/// InputError when it is smaller than the manifest says.
std::shared_ptr<Memory> map_segment(const Manifest& manifest, const LiveSegment& segment, Access access);

}  // namespace weightcast
