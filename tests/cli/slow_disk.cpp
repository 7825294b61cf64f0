// Preloaded into a job to widen a window that is else too narrow for a test: flushing a file whose name ends
// with $SLOW_DISK_FILE takes a second longer.

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

extern "C" int fsync(int fd) {
  std::array<char, 4096> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t length = ::readlink(link.c_str(), target.data(), target.size());
  const char* slow = std::getenv("SLOW_DISK_FILE");
  if (length > 0 && slow != nullptr &&
      std::string_view(target.data(), static_cast<std::size_t>(length)).ends_with(slow)) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}
