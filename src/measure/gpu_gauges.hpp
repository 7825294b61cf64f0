#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "control/control.hpp"
#include "measure/plain_ways.hpp"
#include "measure/unpacking.hpp"
#include "memory/memory.hpp"
#include "plan/rank_plan.hpp"
#include "session/pipeline.hpp"
#include "source/source.hpp"

/// What is measured on a GPU. A build without CUDA has no_gpu.cpp behind it, the others have cuda/.
namespace weightcast {

/// The parts of an update one by one, for comparison with the whole. Made for a GPU pipeline.
class GpuGauges {
 public:
  virtual ~GpuGauges() = default;

  /// Bytes of device memory that this process has taken: parameters, weights, staging, programs, digests.
  virtual std::int64_t device_bytes() const = 0;
  /// Bytes of a trainer's weights among them.
  virtual std::int64_t source_bytes() const = 0;
  /// Most bytes that this rank can send (root) or receive in one broadcast.
  virtual std::int64_t wire_room(bool root) const = 0;

  /// Broadcasts `bytes` in calls of `step` bytes from the weights of the first of `members` (ascending ranks)
  /// into the others' parameters, whatever is there: the wire alone. Collective over the members; returns
  /// when this rank's part is done. `open_wire` comes first, on all ranks.
  virtual void open_wire(const std::vector<int>& members) = 0;
  virtual void broadcast(const std::vector<int>& members, bool root, std::int64_t bytes,
                         std::int64_t step) = 0;

  /// All transfers of an update, in its order and beside each other as there, of whatever is in staging.
  /// Collective; returns when this rank's part is done.
  virtual void transfer() = 0;

  /// How many thread blocks a kernel has: as many as in an update, or as many as the device holds at once.
  enum class Grid : std::uint8_t { kUpdate, kWholeDevice };

  /// Seconds that the device takes to pack all of this rank's buckets, to unpack them, to compute the digests
  /// of either. 0 when the rank does no such thing.
  virtual double pack_seconds(Grid grid) = 0;
  virtual double unpack_seconds(Grid grid) = 0;
  virtual double digest_seconds(Grid grid) = 0;
  /// Seconds that the device takes to copy copy_bytes() within its parameters with cudaMemcpyAsync.
  virtual double copy_seconds() = 0;
  virtual std::int64_t copy_bytes() const = 0;
};

/// `source` may be null. All references must outlive the gauges. With `own_wire` weights and parameters are
/// other processes' memory, and broadcasts are from and into a GiB of the gauges' own, again and again;
/// throws IoError where there is none.
std::unique_ptr<GpuGauges> make_gpu_gauges(Pipeline& pipeline, const RankPlan& rank_plan, Memory& parameters,
                                           Source* source, bool own_wire);

/// As make_host_unpacking(), on the whole of the current device; times are the device's. That of the indexed
/// way counts what the host does meanwhile.
std::unique_ptr<Unpacking> make_gpu_unpacking(const RankPlan& rank_plan, UnpackBuffers buffers,
                                              const std::vector<GlobalScale>& scales,
                                              std::vector<IndexedMatrix> matrices);

/// As plain_mpi_seconds(), by ncclSend and ncclRecv, those of a round as one group; may be called again and
/// again, on all ranks. Collective.
std::function<double()> make_plain_nccl(Control& control, std::vector<std::vector<PlainMessage>> rounds,
                                        std::int64_t ring_bytes);

}  // namespace weightcast
