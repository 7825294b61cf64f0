#pragma once

#include "memory/memory.hpp"

namespace weightcast {

/// Memory on the device that is current when this is made, whoever has allocated it.
class DeviceMemory : public Memory {
 public:
  DeviceMemory(std::byte* data, std::int64_t bytes);

  std::byte* data() const final { return data_; }
  std::int64_t bytes() const final { return bytes_; }
  bool on_host() const final { return false; }
  void read(std::int64_t offset, std::span<std::byte> to) const final;
  void write(std::int64_t offset, std::span<const std::byte> from) final;
  void fill(std::int64_t offset, std::int64_t bytes, std::byte value) final;
  /// Of an allocation of this process.
  PeerHandle peer_handle() const override;

 private:
  std::byte* data_;
  std::int64_t bytes_;
  int device_ = 0;
};

}  // namespace weightcast
