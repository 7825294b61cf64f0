#include "source/cuda/resident_source.hpp"

#include <algorithm>
#include <atomic>

#include "kernels/cuda/cuda_synthetic.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

ResidentSource::ResidentSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                               std::int64_t version) {
  const OwnWeights weights = own_weights(plan, catalog, trainer);
  memory_ = DeviceBuffer(weights.bytes, "the trainer's parameters");
  for (const HeldBox& box : weights.held.boxes()) {
    const std::int64_t cols = catalog[box.tensor].shape.cols();
    fill_synthetic_on_device(catalog[box.tensor], version, box.box.row * cols, box.box.rows * cols,
                             memory_.data() + box.offset, nullptr);
  }
  const Sending programs = compile_sending(plan, catalog, trainer, weights.held);
  std::byte* const base = memory_.data();
  std::vector<ProgramRange> moves;
  std::vector<ProgramRange> boxes;
  std::vector<ProgramRange> quants;
  for (const Sending::Ranges& ranges : programs.buckets) {
    moves.push_back(ranges.moves);
    boxes.push_back(ranges.boxes);
    quants.push_back(ranges.quants);
  }
  moves_ = CudaMovePrograms(programs.moves, moves, {&base, 1});
  digests_ = CudaDigestPrograms(programs.boxes, boxes, {&base, 1});
  quants_ = CudaQuantPrograms(programs.quants, quants, {&base, 1}, {});
  packs_codes_ = std::any_of(programs.quants.begin(), programs.quants.end(),
                             [](const QuantMove& move) { return move.codes.space != Space::kNowhere; });
  boxes_ = programs.boxes.size();
  for (const DigestBox& box : programs.boxes) digest_numbers_.push_back(box.segment);
  for (const QuantMove& move : programs.quants) {
    digest_numbers_.push_back(move.segment);
    digest_numbers_.push_back(static_cast<std::uint32_t>(plan.segments.size()) + move.segment);
  }
  for (std::size_t i = 0; i < programs.moves.size(); ++i) {
    places_.emplace(programs.segments[i], programs.moves[i]);
  }
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
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
  moves_.pack(bucket, staging, blocks, stream);
  if (!packs_codes_) return;
  quants_.run(bucket, staging, scales, results == nullptr ? nullptr : results + boxes_,
              quantizer_blocks(blocks), stream);
}

void ResidentSource::enqueue_digests(std::uint32_t bucket, const GlobalScale* scales, std::uint64_t* results,
                                     bool packed, int blocks, cudaStream_t stream) const {
  digests_.run(bucket, results, blocks, stream);
  if (packed && packs_codes_) return;
  quants_.run(bucket, nullptr, scales, results + boxes_, quantizer_blocks(blocks), stream);
}

}  // namespace weightcast
