// Preloaded into a job to change a file at a moment that a test could hardly meet: at the read of number
// $CHANGE_AT of the file whose name ends with $CHANGE_WHEN_READ, file $CHANGE_TARGET is replaced by file
// $CHANGE_BY or, without that, its last byte is changed.

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace {

bool is_watched(int fd) {
  std::array<char, 4096> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t length = ::readlink(link.c_str(), target.data(), target.size());
  const char* name = std::getenv("CHANGE_WHEN_READ");
  return length > 0 && name != nullptr &&
         std::string_view(target.data(), static_cast<std::size_t>(length)).ends_with(name);
}

void change() {
  const char* target = std::getenv("CHANGE_TARGET");
  if (const char* by = std::getenv("CHANGE_BY")) {
    std::rename(by, target);
    return;
  }
  const int fd = ::open(target, O_RDWR);
  const off_t last = ::lseek(fd, 0, SEEK_END) - 1;
  char byte = 0;
  ::syscall(SYS_pread64, fd, &byte, 1, last);
  byte = static_cast<char>(byte ^ 1);
  ::syscall(SYS_pwrite64, fd, &byte, 1, last);
  ::close(fd);
}

void look_at(int fd) {
  static std::atomic<long> reads = 0;
  const char* at = std::getenv("CHANGE_AT");
  if (at != nullptr && is_watched(fd) && ++reads == std::strtol(at, nullptr, 10)) change();
}

ssize_t read_from(int fd, void* to, size_t bytes, off_t offset) {
  look_at(fd);
  return ::syscall(SYS_pread64, fd, to, bytes, offset);
}

ssize_t read_from(int fd, const iovec* vectors, int count, off_t offset) {
  look_at(fd);
  return ::syscall(SYS_preadv, fd, vectors, count, offset, 0);
}

}  // namespace

extern "C" ssize_t pread(int fd, void* to, size_t bytes, off_t offset) {
  return read_from(fd, to, bytes, offset);
}
extern "C" ssize_t pread64(int fd, void* to, size_t bytes, off_t offset) {
  return read_from(fd, to, bytes, offset);
}
extern "C" ssize_t preadv(int fd, const iovec* vectors, int count, off_t offset) {
  return read_from(fd, vectors, count, offset);
}
extern "C" ssize_t preadv64(int fd, const iovec* vectors, int count, off_t offset) {
  return read_from(fd, vectors, count, offset);
}
