#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "live/manifest.hpp"

namespace weightcast {

/// Owns addresses on the current device behind which pieces of another process's physical memory lie, one
/// behind the other, taken by the file descriptors that it has for them.
class FdMapping {
 public:
  /// Throws IoError naming the manifest when the system or CUDA refuses, InputError when a piece is of
  /// another size.
  FdMapping(const Manifest& manifest, const LiveSegment& segment);
  ~FdMapping();
  FdMapping(FdMapping&& other) noexcept
      : address_(std::exchange(other.address_, 0)),
        reserved_(std::exchange(other.reserved_, 0)),
        mapped_(std::exchange(other.mapped_, 0)) {}
  FdMapping& operator=(FdMapping&&) = delete;
  FdMapping(const FdMapping&) = delete;
  FdMapping& operator=(const FdMapping&) = delete;

  std::byte* data() const { return reinterpret_cast<std::byte*>(address_); }

 private:
  void map(const Manifest& manifest, const LiveSegment& segment);
  void map_piece(const Manifest& manifest, const LivePiece& piece, int process);
  void release() noexcept;

  std::uintptr_t address_ = 0;
  std::size_t reserved_ = 0;  ///< bytes of addresses
  std::size_t mapped_ = 0;    ///< of them, with memory behind them
};

}  // namespace weightcast
