#include "session/cuda/unpack_stage.hpp"

namespace weightcast {

UnpackStage::UnpackStage(const Plan& plan, const RankPlan& rank_plan, const UpdateMemory& memory,
                         std::span<std::byte* const> parameters, StageClock& clock)
    : memory_(memory), clock_(clock) {
  std::vector<ProgramRange> moves;
  std::vector<ProgramRange> quants;
  for (const RankBucket& bucket : rank_plan.buckets) {
    moves.push_back({bucket.first_move, bucket.moves});
    quants.push_back({bucket.first_quant, bucket.quants});
  }
  moves_ = CudaMovePrograms(rank_plan.moves, moves, parameters);
  quants_ = CudaQuantPrograms(rank_plan.quants, quants, {}, parameters);
  for (std::int64_t slot = 0; slot < plan.limits.buffers; ++slot) {
    unpacked_.emplace_back(CudaEvent::Kind::kOrder);
  }
}

void UnpackStage::enqueue(std::size_t k, std::size_t slot, int blocks) {
  const cudaStream_t stream = stream_.get();
  clock_.begin(TraceStage::kUnpack, k, stream);
  run(k, slot, blocks, stream);
  clock_.end(TraceStage::kUnpack, k, stream);
  unpacked_[slot].record(stream);
}

void UnpackStage::run(std::size_t k, std::size_t slot, int blocks, cudaStream_t stream) const {
  moves_.unpack(k, memory_.slot(slot), blocks, stream);
  quants_.run(k, memory_.slot(slot), memory_.scales(), nullptr, quantizer_blocks(blocks), stream);
}

}  // namespace weightcast
