// To be preloaded into a job: stands before pread and preadv and lets one read of one rank fail as a broken
// disk would. Which one, in the environment:
//   FAIL_RANK         the rank that reads
//   FAIL_LEAST_BYTES  only reads of at least so many bytes count
//   FAIL_READ         number of the read among those, from 0

#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

namespace {

long variable(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtol(text, nullptr, 10);
}

bool fails(size_t bytes) {
  static const bool here = variable("OMPI_COMM_WORLD_RANK", -1) == variable("FAIL_RANK", -2);
  static const long least_bytes = variable("FAIL_LEAST_BYTES", 1);
  static const long number = variable("FAIL_READ", -1);
  static std::atomic<long> counted = 0;
  return here && static_cast<long>(bytes) >= least_bytes && counted++ == number;
}

ssize_t read_or_fail(int fd, void* to, size_t bytes, off_t offset) {
  if (fails(bytes)) {
    errno = EIO;
    return -1;
  }
  return syscall(SYS_pread64, fd, to, bytes, offset);
}

ssize_t read_or_fail(int fd, const iovec* vectors, int count, off_t offset) {
  size_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += vectors[i].iov_len;
  if (fails(bytes)) {
    errno = EIO;
    return -1;
  }
  return syscall(SYS_preadv, fd, vectors, count, offset, 0);
}

}  // namespace

extern "C" ssize_t pread(int fd, void* to, size_t bytes, off_t offset) {
  return read_or_fail(fd, to, bytes, offset);
}
extern "C" ssize_t pread64(int fd, void* to, size_t bytes, off_t offset) {
  return read_or_fail(fd, to, bytes, offset);
}
extern "C" ssize_t preadv(int fd, const iovec* vectors, int count, off_t offset) {
  return read_or_fail(fd, vectors, count, offset);
}
extern "C" ssize_t preadv64(int fd, const iovec* vectors, int count, off_t offset) {
  return read_or_fail(fd, vectors, count, offset);
}
