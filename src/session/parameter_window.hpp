#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace weightcast {

/// Memory through which parameters pass on their way to the engine's own loader, which takes them one by one
/// while the update is under way and frees the pages of each. The memory is as large as all parameters, but
/// only `limit` bytes are to be in use at once; the session keeps to that (handover.hpp).
class ParameterWindow {
 public:
  virtual ~ParameterWindow() = default;

  /// Bytes that are to be in it at once.
  virtual std::int64_t limit() const = 0;

  /// The number of the tensor that has its first byte, or another, at that address; nothing for memory that
  /// is not the window's. Several parameters may be one tensor there: experts that are stacked.
  virtual std::optional<std::uint32_t> tensor_at(const std::byte* address) const = 0;

  /// An update is about to write: nothing is in the window, and nothing was handed over.
  virtual void begin() = 0;

  /// Takes memory for what is about to be written there. Throws IoError when the system has none.
  virtual void reserve(std::byte* address, std::int64_t bytes) = 0;

  /// That tensor is whole and verified: it is the loader's. Callable beside the other calls, from one thread.
  virtual void hand_over(std::uint32_t tensor) = 0;

  /// How many of those that were handed over, in their order, have been taken. Throws IoError when the engine
  /// has died or has given up, TimeoutError when it has taken nothing for too long, InputError for what
  /// cannot be.
  virtual std::size_t taken() = 0;
};

}  // namespace weightcast
