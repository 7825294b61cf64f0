#include <algorithm>
#include <cstring>

#include "memory/host_buffer.hpp"
#include "memory/memory.hpp"

namespace weightcast {

namespace {

class HostMemory final : public Memory {
 public:
  HostMemory(std::int64_t bytes, const char* purpose) : buffer_(bytes, purpose) {}

  std::byte* data() const override { return buffer_.data(); }
  std::int64_t bytes() const override { return buffer_.bytes(); }
  bool on_host() const override { return true; }
  void read(std::int64_t offset, std::span<std::byte> to) const override {
    std::memcpy(to.data(), buffer_.data() + offset, to.size());
  }
  void write(std::int64_t offset, std::span<const std::byte> from) override {
    std::memcpy(buffer_.data() + offset, from.data(), from.size());
  }
  void fill(std::int64_t offset, std::int64_t bytes, std::byte value) override {
    std::fill_n(buffer_.data() + offset, bytes, value);
  }

 private:
  HostBuffer buffer_;
};

}  // namespace

std::unique_ptr<Memory> make_host_memory(std::int64_t bytes, const char* purpose) {
  return std::make_unique<HostMemory>(bytes, purpose);
}

}  // namespace weightcast
