#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "measure/gpu_gauges.hpp"
#include "measure/measured.hpp"
#include "session/session.hpp"

namespace weightcast {

/// The parts of an update over NCCL one by one: the wire alone at the bucket size and at 1 GiB, the device's
/// copy rate, pack, unpack and digests alone.
class GpuParts {
 public:
  enum Parts : std::uint8_t {
    kAll,
    kWire,  ///< from and into memory of its own: nobody else's is touched
  };

  /// `source` may be null; `sent_bytes` of the model are sent in an update. All references must outlive this.
  /// Collective.
  GpuParts(Control& control, const Session& session, Source* source, std::int64_t sent_bytes, Parts parts);

  /// Measures everything once more. Collective.
  void measure();

  /// The wire at the bucket size; then at 1 GiB, where there is room.
  const std::vector<Measured>& wires() const { return wires_; }
  /// The transfers of an update alone, with which it is compared: the limit of the plan's own pattern. Its
  /// bytes are those of the model that an update sends. Without seconds where nothing travels, and where
  /// something goes directly.
  const Measured& transfers() const { return transfers_; }
  /// What the device does alone, bytes read and written; the slowest rank's times. The first is its own copy.
  const std::vector<Measured>& device() const { return device_; }

  /// Most bytes of device memory that a rank holds beside its parameters and weights. Collective.
  std::int64_t memory_beyond_parameters();

 private:
  bool all_over_nccl() const;
  double broadcast(std::int64_t step);
  /// Seconds from where all ranks begin `work` to where the last has done it. Collective.
  template <typename Work>
  double together(Work work);
  /// Notes the slowest rank's seconds. Collective.
  void note(Measured& measured, double seconds);
  std::int64_t extreme(std::int64_t value, bool greatest);

  Control& control_;
  const Session& session_;
  std::unique_ptr<GpuGauges> gauges_;
  std::vector<int> members_;
  std::vector<std::int64_t> steps_;
  std::vector<Measured> wires_;
  Measured transfers_{"the plan's transfers alone", {}, 0};
  std::vector<Measured> device_;
};

}  // namespace weightcast
