#include "session/cuda/cuda_stages.hpp"

#include <utility>

#include "sys/cuda.hpp"

namespace weightcast {

namespace {

CudaMovePrograms compile_padding(const RankPlan& rank_plan, std::span<std::byte* const> parameters) {
  const ProgramRange all{0, static_cast<std::uint32_t>(rank_plan.padding.size())};
  return {rank_plan.padding, {&all, 1}, parameters};
}

}  // namespace

CudaStages::CudaStages(const Plan& plan, const RankPlan& rank_plan, const Family& family,
                       const Schedule& resident, std::vector<std::size_t> routes,
                       std::vector<std::byte*> parameters, std::unique_ptr<NcclTransport> transport,
                       std::unique_ptr<PeerMemory> peers, std::function<void()> poll, int most_blocks)
    : blocks(gpu_work(plan, rank_plan), multiprocessors(), most_blocks),
      clock(rank_plan.buckets.size()),
      memory(plan),
      padding(compile_padding(rank_plan, parameters)),
      digests(plan, rank_plan, memory, parameters, padding, clock, blocks.beside_transfers),
      pack(plan, rank_plan, memory, digests.results().sent(), clock, std::move(poll)),
      wire(plan, rank_plan, memory, std::move(routes), std::move(transport), clock),
      unpack(plan, rank_plan, memory, parameters, clock),
      local(rank_plan, resident, memory, parameters, clock),
      direct(plan, rank_plan, family, resident, memory, std::move(peers), std::move(parameters), clock,
             blocks) {}

}  // namespace weightcast
