#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "memory/memory.hpp"
#include "model/catalog.hpp"
#include "model/family.hpp"
#include "plan/direct_routes.hpp"
#include "plan/held_weights.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "plan/routes.hpp"
#include "report/direct_ways.hpp"
#include "session/pipeline.hpp"
#include "session/wire_choice.hpp"
#include "source/source.hpp"
#include "transport/transport.hpp"

/// The one door to the GPU path. A build without CUDA has no_gpu.cpp behind it, where there is never a GPU;
/// the others have cuda/gpu.cpp.
namespace weightcast {

/// Versions of what the GPU path is made of (` · CUDA 13.0 · NCCL 2.28.3`), or nothing in a build without.
std::string gpu_versions();

/// A device that this process sees.
struct VisibleGpu {
  int device = 0;        ///< its number here
  std::string identity;  ///< its PCI address: the same for all processes
  std::string uuid;      ///< `GPU-9832eea0-ced8-8bb0-9a41-9e53e9d09023`
};

struct VisibleGpus {
  std::vector<VisibleGpu> gpus;
  std::string why_none;  ///< CUDA's word, when it sees none
};
VisibleGpus visible_gpus();

/// Makes it the current device, with its context, and says what it is: `cuda:0 NVIDIA H200 (0000:1b:00.0)`.
std::string use_gpu(const VisibleGpu& gpu);

/// Bytes that the current device can still hand out.
std::int64_t available_gpu_bytes();

std::unique_ptr<Memory> make_gpu_memory(std::int64_t bytes, const char* purpose);

/// What writing into the parameters of other ranks needs beside a plan.
struct DirectRequest {
  Direct direct = Direct::kNever;
  const Family& family;
  std::span<const std::shared_ptr<Memory>> allocations = {};  ///< in which this rank's parameters lie
};

/// What opening a GPU session took.
struct GpuStart {
  double communicators = 0;        ///< seconds
  double connections = 0;          ///< seconds: the first transfer along every route
  double programs = 0;             ///< seconds: compiling, uploading, staging
  std::optional<DirectWays> ways;  ///< nothing where none was to go directly
};

/// Opens the routes, each directly or over NCCL, and makes the pipeline over them; the arguments as for
/// CudaPipeline, `rounds` as in SessionOptions. Where there are rounds nothing goes directly. Throws (by
/// agreement) UsageError where all routes are to go directly and one cannot. Collective.
std::unique_ptr<Pipeline> make_gpu_pipeline(const Plan& plan, const RankPlan& rank_plan, Routes routes,
                                            std::vector<std::byte*> parameters, const DirectRequest& direct,
                                            Control& control, int blocks,
                                            const std::vector<std::uint32_t>& rounds, GpuStart& start);

/// A trainer's synthetic weights in device memory.
std::unique_ptr<Source> make_resident_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             std::int64_t version);

/// A trainer's weights in device memory that somebody else has; the arguments as for ResidentSource.
std::unique_ptr<Source> make_held_gpu_source(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                             const HeldWeights& held,
                                             std::vector<std::span<std::byte>> buffers);

}  // namespace weightcast
