#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/cuda_moves.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/cuda/digest_stage.hpp"
#include "session/cuda/direct_stage.hpp"
#include "session/cuda/local_stage.hpp"
#include "session/cuda/pack_stage.hpp"
#include "session/cuda/stage_clock.hpp"
#include "session/cuda/unpack_stage.hpp"
#include "session/cuda/update_memory.hpp"
#include "session/cuda/wire_stage.hpp"
#include "session/schedule.hpp"
#include "session/thread_blocks.hpp"
#include "transport/nccl_transport.hpp"

namespace weightcast {

/// What a pipeline needs to write into the parameters of other ranks.
struct DirectParts {
  std::vector<bool> buckets;          ///< which of the plan's go directly; none at all: no bucket does
  std::unique_ptr<PeerMemory> peers;  ///< null where nothing does
};

/// The stages of an update over NCCL. Each has streams, events and programs of its own and enqueues what it
/// does with one bucket; when, and after which other stage, is the pipeline's business (cuda_pipeline.hpp).
struct CudaStages {
  /// The arguments as for CudaPipeline, PackStage (`poll`) and ThreadBlocks (`most_blocks`); `resident` is
  /// the schedule of a resident source.
  CudaStages(const Plan& plan, const RankPlan& rank_plan, const Family& family, const Schedule& resident,
             std::vector<std::size_t> routes, std::vector<std::byte*> parameters,
             std::unique_ptr<NcclTransport> transport, std::unique_ptr<PeerMemory> peers,
             std::function<void()> poll, int most_blocks);
  CudaStages(const CudaStages&) = delete;
  CudaStages& operator=(const CudaStages&) = delete;
  ~CudaStages() = default;

  ThreadBlocks blocks;
  StageClock clock;
  UpdateMemory memory;
  CudaMovePrograms padding;  ///< one program, which fills it
  DigestStage digests;
  PackStage pack;
  WireStage wire;
  UnpackStage unpack;
  LocalStage local;
  DirectStage direct;
};

}  // namespace weightcast
