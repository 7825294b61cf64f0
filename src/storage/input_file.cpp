#include "storage/input_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "core/error.hpp"

namespace weightcast {

namespace {

// One system call moves a little less than 2 GiB at most.
constexpr std::size_t kMaxRead = std::size_t{1} << 30;

}  // namespace

std::string system_error_text(int error) {
  return std::generic_category().message(error);
}

InputFile::InputFile(const std::string& path)
    : path_(path),
      // Not blocking: opening a pipe that nobody writes to would last for ever.
      fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (fd_ < 0) {
    throw IoError(fmt::format("cannot open {}: {}; check that it is there and readable on every node", path,
                              system_error_text(errno)));
  }
  struct stat status {};
  const int error = ::fstat(fd_, &status) != 0 ? errno : 0;
  if (error == 0 && S_ISREG(status.st_mode)) {
    size_ = status.st_size;
    return;
  }
  ::close(fd_);
  throw IoError(error != 0 ? fmt::format("cannot look at {}: {}", path, system_error_text(error))
                           : fmt::format("{} is no regular file; name a checkpoint file", path));
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void InputFile::read_at(std::int64_t offset, std::span<std::byte> to, std::string_view what) const {
  while (!to.empty()) {
    const ssize_t got = ::pread(fd_, to.data(), std::min(to.size(), kMaxRead), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw IoError(fmt::format("cannot read {} ({}): {}", path_, what, system_error_text(errno)));
    }
    if (got == 0) {
      throw IoError(fmt::format(
          "{} ends at byte {}, {} bytes before the end of {}; the file was cut short after it was "
          "opened, or is truncated: copy it again",
          path_, offset, to.size(), what));
    }
    offset += got;
    to = to.subspan(static_cast<std::size_t>(got));
  }
}

std::string read_text_file(const std::string& path) {
  const InputFile file(path);
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)), "the text");
  return text;
}

}  // namespace weightcast
