#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "live/manifest.hpp"
#include "memory/memory.hpp"
#include "sys/file_mapping.hpp"

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

  /// Its first `bytes`. Throws InputError when the file is shorter, IoError when the system refuses.
  std::unique_ptr<FileMapping> map(const Manifest& manifest, std::int64_t bytes) const;

 private:
  Access access_;
  int fd_;
};

/// Throws IoError naming the manifest when a file of its memory has been cut since it was mapped.
void require_whole(const Manifest& manifest, const FileMapping& mapping);

/// A segment of shared memory, mapped. `manifest` must outlive it.
class SharedMemory final : public Memory {
 public:
  /// Throws as SharedFile and its map().
  SharedMemory(const Manifest& manifest, const LiveSegment& segment, Access access);

  std::byte* data() const override { return mapping_->data(); }
  std::int64_t bytes() const override { return mapping_->bytes(); }
  bool on_host() const override { return true; }
  void read(std::int64_t offset, std::span<std::byte> to) const override;
  void write(std::int64_t offset, std::span<const std::byte> from) override;
  void fill(std::int64_t offset, std::int64_t bytes, std::byte value) override;
  /// Takes memory for that part of a file that has none yet. Throws IoError where there is no room.
  void reserve(std::int64_t offset, std::int64_t bytes);
  void require_whole() const override { weightcast::require_whole(manifest_, *mapping_); }

 private:
  const Manifest& manifest_;
  std::unique_ptr<FileMapping> mapping_;
};

}  // namespace weightcast
