#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/quantizer.hpp"
#include "memory/device_buffer.hpp"
#include "plan/plan.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// Device memory that the stages of an update have in common: the staging slots and the scales.
class UpdateMemory {
 public:
  explicit UpdateMemory(const Plan& plan);

  /// A staging slot of Plan::slot_bytes bytes; numbers go round.
  std::byte* slot(std::size_t number) const {
    return ring_.data() + static_cast<std::int64_t>(number % slots_) * slot_bytes_;
  }
  /// Overwrites all slots. Waits for the device.
  void fill_slots(std::byte value);

  /// The scales of the plan's scopes.
  const GlobalScale* scales() const { return reinterpret_cast<const GlobalScale*>(scales_.data()); }
  /// Puts a copy of these, one for each scope or none at all, into the stream.
  void enqueue_scales(std::span<const GlobalScale> scales, cudaStream_t stream);

 private:
  std::size_t slots_;
  std::int64_t slot_bytes_;
  DeviceBuffer ring_;
  DeviceBuffer scales_;
};

}  // namespace weightcast
