#include "source/cuda/resident_source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "core/error.hpp"
#include "kernels/cuda/cuda_synthetic.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

namespace {

std::span<std::byte> span_of(const DeviceBuffer& buffer) {
  return {buffer.data(), static_cast<std::size_t>(buffer.bytes())};
}

}  // namespace

ResidentSource::ResidentSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                               const HeldWeights& held, std::vector<std::span<std::byte>> buffers)
    : plan_(plan), catalog_(catalog), buffers_(std::move(buffers)) {
  const Sending programs = compile_sending(plan, catalog, trainer, held);
  std::vector<std::byte*> addresses;
  for (const std::span<std::byte> buffer : buffers_) addresses.push_back(buffer.data());
  std::vector<ProgramRange> moves;
  std::vector<ProgramRange> quants;
  for (const Sending::Ranges& ranges : programs.buckets) {
    moves.push_back(ranges.moves);
    box_programs_.push_back(ranges.boxes);
    quants.push_back(ranges.quants);
  }
  moves_ = CudaMovePrograms(programs.moves, moves, addresses);
  boxes_ = programs.boxes;
  digests_ = CudaDigestPrograms(boxes_, box_programs_, addresses);
  quants_ = CudaQuantPrograms(programs.quants, quants, addresses, {});
  packs_codes_ = std::any_of(programs.quants.begin(), programs.quants.end(),
                             [](const QuantMove& move) { return move.codes.space != Space::kNowhere; });
  code_programs_.resize(quants.size());
  if (packs_codes_) {
    code_moves_ = programs.quants;
    code_programs_ = quants;
  }
  for (std::uint32_t i = 0; i < boxes_.size(); ++i) {
    sent_digests_.push_back({boxes_[i].digest, boxes_[i].widened});
    boxes_of_segment_[boxes_[i].digest].push_back(i);
  }
  for (const QuantMove& move : programs.quants) {
    sent_digests_.push_back({move.segment});
    sent_digests_.push_back({static_cast<std::uint32_t>(plan.segments.size()) + move.segment});
  }
  for (std::size_t i = 0; i < programs.moves.size(); ++i) {
    places_[programs.segments[i]].push_back(programs.moves[i]);
  }
  const std::vector<std::int64_t> box_of_move = boxes_of_moves(programs);
  digested_moves_ =
      CudaDigestedMoves(CudaDigestedMoves::Into::kStaging,
                        {programs.moves, moves, boxes_, box_programs_, box_of_move}, addresses, addresses);
}

std::vector<std::int64_t> ResidentSource::boxes_of_moves(const Sending& programs) const {
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; i < programs.moves.size(); ++i) {
    const Move& move = programs.moves[i];
    std::int64_t number = -1;
    const auto boxes = boxes_of_segment_.find(programs.segments[i]);
    if (boxes != boxes_of_segment_.end()) {
      for (const std::uint32_t box : boxes->second) {
        if (boxes_[box].buffer == move.buffer && boxes_[box].offset == move.offset) number = box;
      }
    }
    numbers.push_back(number);
  }
  return numbers;
}

std::int64_t ResidentSource::box_of(std::uint32_t segment) const {
  const auto boxes = boxes_of_segment_.find(segment);
  return boxes == boxes_of_segment_.end() || boxes->second.size() != 1 ? -1 : boxes->second.front();
}

Move ResidentSource::place(std::uint32_t segment) const {
  const std::vector<Move>& pieces = places_.at(segment);
  if (pieces.size() > 1) {
    throw UsageError(fmt::format(
        "{}: the trainer has {} of it in {} pieces, which a rank that is trainer and engine cannot hand to "
        "itself; start the job without --colocate",
        catalog_[plan_.segments[segment].tensor].name, plan_.segments[segment].box.to_string(),
        pieces.size()));
  }
  return from_first_buffer(pieces.front());
}

std::vector<Move> ResidentSource::places(std::uint32_t segment) const {
  std::vector<Move> pieces = places_.at(segment);
  for (Move& piece : pieces) piece = from_first_buffer(piece);
  return pieces;
}

Move ResidentSource::from_first_buffer(Move move) const {
  // Buffers are where they are: a distance, whatever lies between.
  move.offset += reinterpret_cast<std::intptr_t>(buffers_[move.buffer].data()) -
                 reinterpret_cast<std::intptr_t>(buffers_.front().data());
  move.buffer = 0;
  return move;
}

std::uint64_t ResidentSource::next_number() {
  static std::atomic<std::uint64_t> last = 0;
  return ++last;
}

void ResidentSource::find_largest(std::int64_t /*trainer*/, std::span<float> largest,
                                  const std::function<void()>& /*poll*/) {
  DeviceBuffer found(static_cast<std::int64_t>(largest.size_bytes()), "scales");
  WEIGHTCAST_CUDA(cudaMemset(found.data(), 0, largest.size_bytes()));
  for (std::size_t program = 0; program < quants_.programs(); ++program) {
    quants_.find_largest(program, nullptr, reinterpret_cast<float*>(found.data()), 4 * multiprocessors(),
                         nullptr);
  }
  WEIGHTCAST_CUDA(cudaMemcpy(largest.data(), found.data(), largest.size_bytes(), cudaMemcpyDeviceToHost));
}

void ResidentSource::enqueue_pack(std::uint32_t bucket, std::byte* staging, const GlobalScale* scales,
                                  std::uint64_t* results, int blocks, cudaStream_t stream) const {
  if (results == nullptr) {
    moves_.pack(bucket, staging, blocks, stream);
  } else {
    digested_moves_.run(bucket, staging, results, blocks, stream);
  }
  if (!packs_codes_) return;
  quants_.run(bucket, staging, scales, results == nullptr ? nullptr : results + boxes_.size(),
              quantizer_blocks(blocks), stream);
}

void ResidentSource::enqueue_digests(std::uint32_t bucket, const GlobalScale* scales, std::uint64_t* results,
                                     Digests digests, int blocks, cudaStream_t stream) const {
  if (digests == Digests::kAll) digests_.run(bucket, results, blocks, stream);
  if (digests == Digests::kNotPacked) digested_moves_.run_rest(bucket, results, blocks, stream);
  if (digests != Digests::kOfQuantized && packs_codes_) return;
  quants_.run(bucket, nullptr, scales, results + boxes_.size(), quantizer_blocks(blocks), stream);
}

SyntheticSource::SyntheticSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                 std::int64_t version)
    : SyntheticSource(plan, catalog, trainer, version, own_weights(plan, catalog, trainer), DeviceBuffer()) {}

SyntheticSource::SyntheticSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                                 std::int64_t version, const OwnWeights& weights, DeviceBuffer memory)
    : ResidentSource(plan, catalog, trainer, weights.held,
                     {span_of(memory = DeviceBuffer(weights.bytes, "the trainer's parameters"))}),
      memory_(std::move(memory)) {
  for (const HeldBox& box : weights.held.boxes()) {
    const std::int64_t cols = catalog[box.tensor].shape.cols();
    fill_synthetic_on_device(catalog[box.tensor], version, box.box.row * cols, box.box.rows * cols,
                             memory_.data() + box.offset, nullptr);
  }
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
}

}  // namespace weightcast
