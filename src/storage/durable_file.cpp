#include "storage/durable_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "storage/input_file.hpp"
#include "storage/replacement.hpp"

namespace weightcast {

void write_durably(const std::string& path, std::string_view text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
  int error = fd < 0 ? errno : 0;
  if (fd >= 0) {
    const ssize_t put = ::write(fd, text.data(), text.size());
    if (put != static_cast<ssize_t>(text.size())) error = put < 0 ? errno : ENOSPC;
    if (error == 0 && ::fsync(fd) != 0) error = errno;
    if (::close(fd) != 0 && error == 0 && errno != EINTR) error = errno;
    if (error != 0) ::unlink(path.c_str());
  }
  if (error == 0) return;
  throw SystemRefusal(
      fmt::format("cannot write {}: {}; check its folder and its disk", path, system_error_text(error)),
      error);
}

}  // namespace weightcast
