#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "control/control.hpp"
#include "measure/measured.hpp"
#include "plan/topology.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

/// The MPI wire alone: as much as trainer 0's own weights, up to 2 GiB, walked through in steps of one size,
/// broadcast by plain MPI_Ibcast to all inference ranks into a region as large as the staging ring; and the
/// same with every step copied from there once, as an engine that receives everything would.
class MpiWire {
 public:
  /// `source`: where trainer 0 sends from, which is walked round when it is smaller than `bytes`; `target`:
  /// an inference rank's memory, whatever is there, the first `ring_bytes` of which receive. Collective.
  MpiWire(Control& control, const Topology& topology, std::span<std::byte> source, std::int64_t bytes,
          std::span<std::byte> target, std::int64_t ring_bytes);

  /// Measures every step size once more. Collective.
  void measure();

  /// By step size; those with copies are empty when the memory has no room for them.
  const std::vector<Measured>& broadcasts() const { return broadcasts_; }
  const std::vector<Measured>& with_copies() const { return copied_; }

 private:
  /// The least over all ranks. Collective.
  std::int64_t least(std::int64_t value);
  double broadcast(std::int64_t step, bool copy);

  Control& control_;
  std::span<std::byte> buffer_;  ///< sent from, or received into
  std::span<std::byte> copies_;  ///< of an inference rank: beside the buffer
  std::int64_t bytes_ = 0;
  bool member_ = false;
  Communicator group_;
  std::vector<std::int64_t> steps_;
  std::vector<Measured> broadcasts_;
  std::vector<Measured> copied_;
};

}  // namespace weightcast
