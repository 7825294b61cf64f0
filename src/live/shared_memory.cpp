#include "live/shared_memory.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.hpp"
#include "live/gpu_live.hpp"

namespace weightcast {

namespace {

/// Memory of another process.
class MappedMemory final : public Memory {
 public:
  MappedMemory(std::byte* data, std::int64_t bytes) : data_(data), bytes_(bytes) {}
  ~MappedMemory() override { ::munmap(data_, static_cast<std::size_t>(bytes_)); }
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  std::byte* data() const override { return data_; }
  std::int64_t bytes() const override { return bytes_; }
  bool on_host() const override { return true; }
  void read(std::int64_t offset, std::span<std::byte> to) const override {
    std::memcpy(to.data(), data_ + offset, to.size());
  }
  void write(std::int64_t offset, std::span<const std::byte> from) override {
    std::memcpy(data_ + offset, from.data(), from.size());
  }
  void fill(std::int64_t offset, std::int64_t bytes, std::byte value) override {
    std::fill_n(data_ + offset, bytes, value);
  }

 private:
  std::byte* data_;
  std::int64_t bytes_;
};

}  // namespace

SharedFile::SharedFile(const Manifest& manifest, const std::string& name, Access access)
    : access_(access),
      // A pipe in its place must not hold anybody up.
      fd_(::shm_open(name.c_str(), (access == Access::kWrite ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK,
                     0)) {
  struct stat status = {};
  if (fd_ >= 0 && ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode) && status.st_uid == ::getuid())
    return;
  if (fd_ >= 0) {
    ::close(fd_);
    if (!S_ISREG(status.st_mode)) {
      throw InputError(fmt::format("{}: its shared memory {} is no file; remove it, and publish again",
                                   manifest.path, name));
    }
    throw IoError(
        fmt::format("{}: its shared memory {} is of user {}; let that user remove it, and publish again",
                    manifest.path, name, status.st_uid));
  }
  throw IoError(fmt::format(
      "{}: its shared memory {} cannot be opened ({}); its exporter is gone, or has published anew",
      manifest.path, name, std::strerror(errno)));
}

SharedFile::~SharedFile() {
  if (fd_ >= 0) ::close(fd_);
}

std::byte* SharedFile::map(const Manifest& manifest, std::int64_t bytes) const {
  struct stat status = {};
  if (::fstat(fd_, &status) != 0 || status.st_size < bytes) {
    throw InputError(fmt::format("{}: its shared memory has {} bytes and not {}; publish again",
                                 manifest.path, status.st_size, bytes));
  }
  const int protection = access_ == Access::kWrite ? PROT_READ | PROT_WRITE : PROT_READ;
  void* memory = ::mmap(nullptr, static_cast<std::size_t>(bytes), protection, MAP_SHARED, fd_, 0);
  if (memory == MAP_FAILED) {
    throw IoError(fmt::format("{}: {} bytes of its shared memory cannot be mapped: {}", manifest.path, bytes,
                              std::strerror(errno)));
  }
  return static_cast<std::byte*>(memory);
}

std::shared_ptr<Memory> map_segment(const Manifest& manifest, const LiveSegment& segment, Access access) {
  if (segment.kind != SegmentKind::kShared) return open_gpu_segment(manifest, segment);
  const SharedFile file(manifest, segment.name, access);
  return std::make_shared<MappedMemory>(file.map(manifest, segment.bytes), segment.bytes);
}

}  // namespace weightcast
