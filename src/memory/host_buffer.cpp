#include "memory/host_buffer.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "core/error.hpp"
#include "core/units.hpp"

namespace weightcast {

HostBuffer::HostBuffer(std::int64_t bytes, const char* purpose) : bytes_(bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<std::size_t>(bytes);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw IoError(
        fmt::format("no {} of host memory for {}: {}; use fewer ranks a node or smaller --bucket-size",
                    format_bytes(bytes), purpose, std::strerror(errno)));
  }
  // Advice only: a system without huge pages serves small ones; one that cannot touch them all now does so
  // later, in the first update.
  static_cast<void>(madvise(memory, size, MADV_HUGEPAGE));
  static_cast<void>(madvise(memory, size, MADV_POPULATE_WRITE));
  data_ = static_cast<std::byte*>(memory);
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(bytes_));
}

}  // namespace weightcast
