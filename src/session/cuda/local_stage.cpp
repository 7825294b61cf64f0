#include "session/cuda/local_stage.hpp"

#include <utility>

#include "session/local_programs.hpp"

namespace weightcast {

LocalStage::LocalStage(const RankPlan& rank_plan, const Schedule& schedule, const UpdateMemory& memory,
                       std::vector<std::byte*> parameters, StageClock& clock)
    : rank_plan_(rank_plan),
      schedule_(schedule),
      memory_(memory),
      parameters_(std::move(parameters)),
      clock_(clock) {}

void LocalStage::prepare(const ResidentSource& source) {
  if (source.number() == source_) return;
  const LocalPrograms programs =
      compile_local(rank_plan_, schedule_, [&](std::uint32_t segment) { return source.place(segment); });
  std::byte* const weights = source.buffers().front().data();
  moves_ = CudaMovePrograms(programs.moves, programs.move_programs, parameters_);
  quants_ = CudaQuantPrograms(programs.quants, programs.quant_programs, {&weights, 1}, parameters_);
  weights_ = weights;
  std::vector<std::byte*> buffers;
  for (const std::span<std::byte> buffer : source.buffers()) buffers.push_back(buffer.data());
  std::vector<std::int64_t> box_of_move;
  for (const std::uint32_t segment : programs.segments) box_of_move.push_back(source.box_of(segment));
  std::vector<ProgramRange> boxes;
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    boxes.push_back(schedule_.local(k) ? source.boxes_of(rank_plan_.buckets[k].bucket) : ProgramRange{});
  }
  digested_moves_ = CudaDigestedMoves(
      CudaDigestedMoves::Into::kBuffers,
      {programs.moves, programs.move_programs, source.boxes(), boxes, box_of_move}, parameters_, buffers);
  source_ = source.number();
}

void LocalStage::enqueue(std::size_t k, std::uint64_t* results, int blocks) {
  const cudaStream_t stream = stream_.get();
  clock_.begin(TraceStage::kUnpack, k, stream);
  if (results == nullptr) {
    moves_.unpack(k, weights_, blocks, stream);
  } else {
    digested_moves_.run(k, weights_, results, blocks, stream);
  }
  quants_.run(k, nullptr, memory_.scales(), nullptr, quantizer_blocks(blocks), stream);
  clock_.end(TraceStage::kUnpack, k, stream);
}

}  // namespace weightcast
