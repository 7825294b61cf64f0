#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "memory/memory.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "plan/share.hpp"
#include "session/control.hpp"
#include "session/pipeline.hpp"
#include "session/placement.hpp"
#include "session/source.hpp"
#include "session/unpacking.hpp"
#include "transport/transport.hpp"

/// The one door to the GPU path. A build without CUDA has no_gpu.cpp behind it, where there is never a GPU;
/// the others have cuda/gpu.cpp.
namespace weightcast {

/// Versions of what the GPU path is made of (` · CUDA 13.0 · NCCL 2.28.3`), or nothing in a build without.
std::string gpu_versions();

/// The GPU of this rank, as choose_placement wants to know it.
struct OwnGpu {
  int visible = 0;       ///< devices that this process sees
  int device = 0;        ///< the one for a rank of that number on its node
  std::string why_none;  ///< CUDA's word, when it sees none
  std::string identity;  ///< its PCI address: the same for all processes; empty without one
};
OwnGpu own_gpu(int rank_on_node);

/// Makes it the current device, with its context, and says what it is: `cuda:0 NVIDIA H200 (0000:1b:00.0)`.
std::string use_gpu(const OwnGpu& gpu);

/// Bytes that the current device can still hand out.
std::int64_t available_gpu_bytes();

std::unique_ptr<Memory> make_gpu_memory(std::int64_t bytes, const char* purpose);

/// What opening a GPU session took.
struct GpuStart {
  double communicators = 0;  ///< seconds
  double connections = 0;    ///< seconds: the first transfer along every route
  double programs = 0;       ///< seconds: compiling, uploading, staging
};

/// Opens the routes over NCCL and makes the pipeline over them; the arguments as for CudaPipeline.
/// Collective.
std::unique_ptr<Pipeline> make_gpu_pipeline(const Plan& plan, const Share& share,
                                            const std::vector<Route>& routes,
                                            std::vector<std::size_t> route_of_bucket,
                                            std::vector<std::byte*> parameters, Control& control, int blocks,
                                            GpuStart& start);

/// A trainer's synthetic weights in device memory.
std::unique_ptr<Source> make_resident_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             std::int64_t version);

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

/// `source` may be null. All references must outlive the gauges.
std::unique_ptr<GpuGauges> make_gpu_gauges(Pipeline& pipeline, const Share& share, Memory& parameters,
                                           Source* source);

/// As make_host_unpacking(), on the whole of the current device; times are the device's. That of the indexed
/// way counts what the host does meanwhile.
std::unique_ptr<Unpacking> make_gpu_unpacking(const Share& share, UnpackBuffers buffers,
                                              const std::vector<GlobalScale>& scales,
                                              std::vector<IndexedMatrix> matrices);

}  // namespace weightcast
