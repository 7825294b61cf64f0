#pragma once

#include <cstdint>
#include <string>

#include "control/control.hpp"

namespace weightcast {

/// What carries the buckets, and with it where the weights are: MPI between host memories, NCCL between GPUs.
enum class Wire : std::uint8_t { kMpi, kNccl };

/// `mpi`, `nccl`
const char* wire_name(Wire wire);

/// The wire of a job and the device that a rank works on.
struct WireChoice {
  Wire wire = Wire::kMpi;
  std::string device = "cpu";  ///< for the report: `cpu`, or `cuda:0 NVIDIA H200 (0000:1b:00.0)`
  double seconds = 0;          ///< that finding and opening the device took
};

/// Chooses what `--transport` asks for: `mpi`, `nccl`, or `auto`, which takes NCCL when every rank has a GPU
/// of its own, which becomes the current device. A rank takes the GPU of that `uuid`, or, where `uuid` is
/// empty, one that no rank of its node names: they go round by the ranks' numbers. Throws (by agreement)
/// UsageError when NCCL is asked for and this build, this machine or the number of ranks on it does not allow
/// it. Collective.
WireChoice choose_wire(Control& control, const std::string& transport, const std::string& uuid = "");

}  // namespace weightcast
