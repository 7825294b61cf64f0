#include "measure/cuda/cuda_unpacking.hpp"

#include <algorithm>
#include <utility>

#include "kernels/cuda/row_gather.hpp"
#include "measure/cuda/device_time.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kIndexBytes = sizeof(std::int64_t);
// Programs of moves.
constexpr std::size_t kBucket = 0;
constexpr std::size_t kPadding = 1;

/// All that the bucket moves, and behind it the padding.
CudaMovePrograms compile_moves(const RankPlan& rank_plan, std::span<std::byte* const> parameters) {
  const RankBucket& bucket = rank_plan.buckets.front();
  std::vector<Move> moves = rank_plan.moves;
  const auto padding = static_cast<std::uint32_t>(moves.size());
  moves.insert(moves.end(), rank_plan.padding.begin(), rank_plan.padding.end());
  const std::vector<ProgramRange> programs{{bucket.first_move, bucket.moves},
                                           {padding, static_cast<std::uint32_t>(rank_plan.padding.size())}};
  return {moves, programs, parameters};
}

CudaQuantPrograms compile_quants(const RankPlan& rank_plan, std::span<std::byte* const> parameters) {
  const RankBucket& bucket = rank_plan.buckets.front();
  const ProgramRange program{bucket.first_quant, bucket.quants};
  return {rank_plan.quants, {&program, 1}, {}, parameters};
}

void copy_on_device(std::byte* to, const std::byte* from, std::int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  WEIGHTCAST_CUDA(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream));
}

}  // namespace

CudaUnpacking::CudaUnpacking(const RankPlan& rank_plan, UnpackBuffers buffers,
                             const std::vector<GlobalScale>& scales, std::vector<IndexedMatrix> matrices)
    : buffers_(std::move(buffers)),
      matrices_(std::move(matrices)),
      blocks_(4 * multiprocessors()),
      stream_(CudaStream::Priority::kNormal),
      moves_(compile_moves(rank_plan, buffers_.parameters)),
      quants_(compile_quants(rank_plan, buffers_.parameters)),
      scales_(std::span<const GlobalScale>(scales)) {
  std::int64_t rows = 0;
  std::int64_t largest = 0;
  for (const IndexedMatrix& matrix : matrices_) {
    rows += matrix.rows;
    largest = std::max(largest, matrix.bytes());
  }
  if (rows == 0) return;
  built_ = PinnedBuffer(rows * kIndexBytes, "the row indices");
  index_ = DeviceBuffer(rows * kIndexBytes, "the row indices");
  gathered_ = DeviceBuffer(largest, "the gathered rows");
}

void CudaUnpacking::zero_padding() {
  moves_.unpack(kPadding, nullptr, blocks_, stream_.get());
  WEIGHTCAST_CUDA(cudaStreamSynchronize(stream_.get()));
}

double CudaUnpacking::unpack_seconds() {
  return device_seconds(stream_.get(), [&] {
    moves_.unpack(kBucket, buffers_.staging.data(), blocks_, stream_.get());
    quants_.run(0, buffers_.staging.data(), scales_.data(), nullptr, blocks_, stream_.get());
  });
}

double CudaUnpacking::index_seconds() {
  if (matrices_.empty()) return 0;
  return device_seconds(stream_.get(), [&] {
    std::int64_t first = 0;
    for (const IndexedMatrix& matrix : matrices_) {
      matrix.shuffled ? enqueue_shuffle(matrix, first) : enqueue_copy(matrix);
      first += matrix.rows;
    }
  });
}

double CudaUnpacking::copy_seconds() {
  return device_seconds(stream_.get(), [&] {
    copy_on_device(buffers_.copied, buffers_.staging.data(), std::ssize(buffers_.staging), stream_.get());
  });
}

void CudaUnpacking::enqueue_copy(const IndexedMatrix& matrix) const {
  std::byte* const to = buffers_.parameters[matrix.parameter] + matrix.offset;
  for (const IndexedMatrix::Part& part : matrix.parts) {
    copy_on_device(to + part.first * matrix.row_bytes, buffers_.staging.data() + part.staging,
                   part.rows * matrix.row_bytes, stream_.get());
  }
}

void CudaUnpacking::enqueue_shuffle(const IndexedMatrix& matrix, std::int64_t first) const {
  const cudaStream_t stream = stream_.get();
  auto* const built = reinterpret_cast<std::int64_t*>(built_.data()) + first;
  auto* const index = reinterpret_cast<std::int64_t*>(index_.data()) + first;
  const auto rows = static_cast<std::size_t>(matrix.rows);
  build_index(matrix, {built, rows});
  WEIGHTCAST_CUDA(cudaMemcpyAsync(index, built, rows * kIndexBytes, cudaMemcpyHostToDevice, stream));
  const auto [upper, lower] = matrix.parts;
  const std::byte* const staging = buffers_.staging.data();
  gather_rows({staging + upper.staging, upper.rows, staging + lower.staging, matrix.row_bytes}, index,
              matrix.rows, gathered_.data(), stream);
  std::byte* const to = buffers_.parameters[matrix.parameter] + matrix.offset;
  if (matrix.in_k_blocks) {
    cut_k_blocks(gathered_.data(), matrix.rows, matrix.row_bytes, to, stream);
  } else {
    copy_on_device(to, gathered_.data(), matrix.bytes(), stream);
  }
}

std::unique_ptr<Unpacking> make_gpu_unpacking(const RankPlan& rank_plan, UnpackBuffers buffers,
                                              const std::vector<GlobalScale>& scales,
                                              std::vector<IndexedMatrix> matrices) {
  return std::make_unique<CudaUnpacking>(rank_plan, std::move(buffers), scales, std::move(matrices));
}

}  // namespace weightcast
