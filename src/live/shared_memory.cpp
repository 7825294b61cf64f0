#include "live/shared_memory.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "core/error.hpp"

namespace weightcast {

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
      "{}: its shared memory {} cannot be opened ({}); its exporter is gone, or has published anew: "
      "run it again",
      manifest.path, name, std::strerror(errno)));
}

SharedFile::~SharedFile() {
  if (fd_ >= 0) ::close(fd_);
}

std::unique_ptr<FileMapping> SharedFile::map(const Manifest& manifest, std::int64_t bytes) const {
  struct stat status = {};
  if (::fstat(fd_, &status) != 0 || status.st_size < bytes) {
    throw InputError(fmt::format("{}: its shared memory has {} bytes and not {}; publish again",
                                 manifest.path, status.st_size, bytes));
  }
  try {
    return std::make_unique<FileMapping>(fd_, bytes, access_ == Access::kWrite);
  } catch (const std::system_error& error) {
    throw IoError(fmt::format("{}: {} bytes of its shared memory cannot be mapped: {}; look at ulimit -v",
                              manifest.path, bytes, error.code().message()));
  }
}

void require_whole(const Manifest& manifest, const FileMapping& mapping) {
  if (!mapping.has_shrunk()) return;
  throw IoError(manifest.path +
                ": memory that its exporter has published has shrunk: somebody has cut its file in /dev/shm; "
                "let the exporter publish anew");
}

SharedMemory::SharedMemory(const Manifest& manifest, const LiveSegment& segment, Access access)
    : manifest_(manifest),
      mapping_(SharedFile(manifest, segment.name, access).map(manifest, segment.bytes)) {}

void SharedMemory::read(std::int64_t offset, std::span<std::byte> to) const {
  std::memcpy(to.data(), data() + offset, to.size());
}

void SharedMemory::write(std::int64_t offset, std::span<const std::byte> from) {
  std::memcpy(data() + offset, from.data(), from.size());
}

void SharedMemory::reserve(std::int64_t offset, std::int64_t bytes) {
  try {
    mapping_->reserve(offset, bytes);
  } catch (const std::system_error& error) {
    throw IoError(
        fmt::format("{}: there is no room for {} bytes of its window in /dev/shm: {}; remove what dead "
                    "exporters have left "
                    "(weightcast hosts --clean DIR), make /dev/shm larger, or publish a smaller window",
                    manifest_.path, bytes, error.code().message()));
  }
}

void SharedMemory::fill(std::int64_t offset, std::int64_t bytes, std::byte value) {
  std::fill_n(data() + offset, bytes, value);
}

}  // namespace weightcast
