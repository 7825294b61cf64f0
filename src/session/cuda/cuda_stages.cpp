#include "session/cuda/cuda_stages.hpp"

#include <algorithm>
#include <utility>

#include "sys/cuda.hpp"

namespace weightcast {

namespace {

CudaMovePrograms compile_padding(const Share& share, std::span<std::byte* const> parameters) {
  const ProgramRange all{0, static_cast<std::uint32_t>(share.padding.size())};
  return {share.padding, {&all, 1}, parameters};
}

}  // namespace

ThreadBlocks::ThreadBlocks(int beside)
    : beside_transfers(beside > 0 ? beside : std::max(1, multiprocessors() / 4)),
      alone(4 * multiprocessors()) {}

CudaStages::CudaStages(const Plan& plan, const Share& share, const Schedule& resident,
                       std::vector<std::size_t> routes, std::vector<std::byte*> parameters,
                       std::unique_ptr<NcclTransport> transport, std::function<void()> poll, int most_blocks)
    : blocks(most_blocks),
      clock(share.buckets.size()),
      memory(plan),
      padding(compile_padding(share, parameters)),
      digests(plan, share, memory, parameters, padding, clock, blocks.beside_transfers),
      pack(plan, share, memory, digests.results().sent(), clock, std::move(poll)),
      wire(plan, share, memory, std::move(routes), std::move(transport), clock),
      unpack(plan, share, memory, parameters, clock),
      local(share, resident, memory, std::move(parameters), clock) {}

}  // namespace weightcast
