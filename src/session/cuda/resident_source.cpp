#include "session/cuda/resident_source.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "kernels/cuda/cuda_synthetic.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

ResidentSource::ResidentSource(const Plan& plan, const Catalog& catalog, std::int64_t trainer,
                               std::int64_t version) {
  const HeldWeights held = held_weights(plan, catalog, trainer);
  memory_ = DeviceBuffer(held.bytes, "the trainer's parameters");
  for (std::uint32_t number = 0; number < catalog.size(); ++number) {
    const HeldWeights::Rows& rows = held.tensors[number];
    const std::int64_t cols = catalog[number].shape.cols();
    fill_synthetic_on_device(catalog[number], version, rows.row * cols, (rows.end - rows.row) * cols,
                             memory_.data() + rows.offset, nullptr);
  }
  const HeldPrograms programs = held_programs(plan, catalog, trainer, held);
  std::byte* const base = memory_.data();
  std::vector<ProgramRange> moves;
  std::vector<ProgramRange> boxes;
  for (const HeldPrograms::Ranges& ranges : programs.buckets) {
    moves.push_back(ranges.moves);
    boxes.push_back(ranges.boxes);
  }
  moves_ = CudaMovePrograms(programs.moves, moves, {&base, 1});
  digests_ = CudaDigestPrograms(programs.boxes, boxes, {&base, 1});
  for (const DigestBox& box : programs.boxes) segments_.push_back(box.segment);
  for (std::size_t i = 0; i < programs.moves.size(); ++i) {
    places_.emplace(programs.segments[i], programs.moves[i]);
  }
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
}

void ResidentSource::find_largest(std::int64_t /*trainer*/, std::span<float> /*largest*/) {
  throw InternalError("weights in device memory are not yet quantised");
}

void ResidentSource::pack(std::uint32_t /*bucket*/, std::byte* /*staging*/,
                          std::span<std::uint64_t> /*digests*/) {
  throw InternalError("weights in device memory are packed on the device");
}

std::byte* ResidentSource::in_place(std::uint32_t /*segment*/) const {
  throw InternalError("weights in device memory are packed on the device");
}

}  // namespace weightcast
