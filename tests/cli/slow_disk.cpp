// Preloaded into a job to widen a window that is else too narrow for a test: flushing and reading a file
// whose name contains $SLOW_DISK_FILE takes $SLOW_DISK_MILLISECONDS longer, whatever signals come.

#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

namespace {

void wait_if_slow(int fd) {
  std::array<char, 4096> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t length = ::readlink(link.c_str(), target.data(), target.size());
  const char* slow = std::getenv("SLOW_DISK_FILE");
  const char* delay = std::getenv("SLOW_DISK_MILLISECONDS");
  if (length > 0 && slow != nullptr && delay != nullptr &&
      std::string_view(target.data(), static_cast<std::size_t>(length)).find(slow) !=
          std::string_view::npos) {
    std::this_thread::sleep_for(std::chrono::milliseconds(std::strtol(delay, nullptr, 10)));
  }
}

ssize_t read_slowly(int fd, void* to, size_t bytes, off_t offset) {
  wait_if_slow(fd);
  return ::syscall(SYS_pread64, fd, to, bytes, offset);
}

ssize_t read_slowly(int fd, const iovec* vectors, int count, off_t offset) {
  wait_if_slow(fd);
  return ::syscall(SYS_preadv, fd, vectors, count, offset, 0);
}

}  // namespace

extern "C" int fsync(int fd) {
  wait_if_slow(fd);
  return static_cast<int>(::syscall(SYS_fsync, fd));
}
extern "C" ssize_t pread(int fd, void* to, size_t bytes, off_t offset) {
  return read_slowly(fd, to, bytes, offset);
}
extern "C" ssize_t pread64(int fd, void* to, size_t bytes, off_t offset) {
  return read_slowly(fd, to, bytes, offset);
}
extern "C" ssize_t preadv(int fd, const iovec* vectors, int count, off_t offset) {
  return read_slowly(fd, vectors, count, offset);
}
extern "C" ssize_t preadv64(int fd, const iovec* vectors, int count, off_t offset) {
  return read_slowly(fd, vectors, count, offset);
}
