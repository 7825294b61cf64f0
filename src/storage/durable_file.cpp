#include "storage/durable_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "storage/input_file.hpp"
#include "storage/replacement.hpp"

namespace weightcast {

namespace {

[[noreturn]] void fail_to_write(const std::string& path, int error) {
  throw SystemRefusal(
      fmt::format("cannot write {}: {}; check its folder and its disk", path, system_error_text(error)),
      error);
}

/// Writes the whole text, puts it on the disk and closes the file. The system's error, 0 when that went well.
int write_and_close(int fd, std::string_view text) {
  const ssize_t put = ::write(fd, text.data(), text.size());
  int error = 0;
  if (put != static_cast<ssize_t>(text.size())) error = put < 0 ? errno : ENOSPC;
  if (error == 0 && ::fsync(fd) != 0) error = errno;
  if (::close(fd) != 0 && error == 0 && errno != EINTR) error = errno;
  return error;
}

}  // namespace

void write_durably(const std::string& path, std::string_view text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd < 0) fail_to_write(path, errno);
  const int error = write_and_close(fd, text);
  if (error == 0) return;
  ::unlink(path.c_str());
  fail_to_write(path, error);
}

void append_durably(const std::string& path, std::string_view text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  const int error = fd < 0 ? errno : write_and_close(fd, text);
  if (error != 0) fail_to_write(path, error);
}

}  // namespace weightcast
