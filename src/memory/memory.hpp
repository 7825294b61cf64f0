#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace weightcast {

/// By what another process of this host opens memory on a GPU.
struct PeerHandle {
  enum class Kind : std::uint8_t {
    kNone,    ///< it is not on a GPU
    kIpc,     ///< CUDA's handle of the allocation
    kPieces,  ///< it is made of pieces that are not one allocation
    kRefused  ///< CUDA gives no handle
  };
  Kind kind = Kind::kNone;
  int error = 0;  ///< CUDA's, where it is refused
  std::array<std::byte, 64> ipc{};
};

/// Memory at an address that never changes, on the host or on a GPU.
class Memory {
 public:
  virtual ~Memory() = default;

  /// The first byte; on a GPU the device's address.
  virtual std::byte* data() const = 0;
  virtual std::int64_t bytes() const = 0;

  /// True when the host may follow data().
  virtual bool on_host() const = 0;

  /// Copies [offset, offset + to.size()) into host memory. Waits. Callable from several
  /// threads.
  virtual void read(std::int64_t offset, std::span<std::byte> to) const = 0;

  /// Copies `from` to [offset, offset + from.size()). Waits.
  virtual void write(std::int64_t offset, std::span<const std::byte> from) = 0;

  /// Sets every byte of [offset, offset + bytes). Waits.
  virtual void fill(std::int64_t offset, std::int64_t bytes, std::byte value) = 0;

  virtual PeerHandle peer_handle() const { return {}; }

  /// Throws IoError when some of it was somebody else's and is no more, so that what was read or written is
  /// not what the other one has.
  virtual void require_whole() const {}
};

/// Throws IoError when the system refuses; `purpose` says what for.
std::unique_ptr<Memory> make_host_memory(std::int64_t bytes, const char* purpose);

/// On the current device; only in builds with CUDA.
std::unique_ptr<Memory> make_device_memory(std::int64_t bytes, const char* purpose);

}  // namespace weightcast
