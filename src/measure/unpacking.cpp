#include "measure/unpacking.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <utility>

#include "kernels/executor.hpp"

namespace weightcast {

namespace {

std::size_t size(std::int64_t bytes) {
  return static_cast<std::size_t>(bytes);
}

double timed(const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class HostUnpacking final : public Unpacking {
 public:
  HostUnpacking(const RankPlan& rank_plan, UnpackBuffers buffers, std::vector<GlobalScale> scales,
                std::vector<IndexedMatrix> matrices)
      : rank_plan_(rank_plan),
        buffers_(std::move(buffers)),
        scales_(std::move(scales)),
        matrices_(std::move(matrices)),
        executor_(make_host_executor()) {
    for (const IndexedMatrix& matrix : matrices_) {
      index_.resize(std::max(index_.size(), size(matrix.rows)));
      gathered_.resize(std::max(gathered_.size(), size(matrix.bytes())));
    }
  }

  void zero_padding() override { executor_->unpack(rank_plan_.padding, nullptr, buffers_.parameters); }

  double unpack_seconds() override {
    const RankBucket& bucket = rank_plan_.buckets.front();
    const std::span<const Move> moves = std::span(rank_plan_.moves).subspan(bucket.first_move, bucket.moves);
    std::byte* const staging = buffers_.staging.data();
    return timed([&] {
      executor_->unpack(moves, staging, buffers_.parameters);
      executor_->quantize(rank_plan_.quant_program(bucket), {{}, staging, buffers_.parameters}, scales_, {});
    });
  }

  double index_seconds() override {
    if (matrices_.empty()) return 0;
    return timed([&] {
      for (const IndexedMatrix& matrix : matrices_) {
        matrix.shuffled ? shuffle(matrix) : copy(matrix);
      }
    });
  }

  double copy_seconds() override {
    return timed([&] { std::memcpy(buffers_.copied, buffers_.staging.data(), buffers_.staging.size()); });
  }

 private:
  std::byte* place_of(const IndexedMatrix& matrix) const {
    return buffers_.parameters[matrix.parameter] + matrix.offset;
  }

  void copy(const IndexedMatrix& matrix) const {
    for (const IndexedMatrix::Part& part : matrix.parts) {
      std::memcpy(place_of(matrix) + part.first * matrix.row_bytes, buffers_.staging.data() + part.staging,
                  size(part.rows * matrix.row_bytes));
    }
  }

  void shuffle(const IndexedMatrix& matrix) {
    build_index(matrix, std::span(index_).first(size(matrix.rows)));
    const auto [upper, lower] = matrix.parts;
    for (std::int64_t row = 0; row < matrix.rows; ++row) {
      const std::int64_t from = index_[size(row)];
      const std::int64_t start = from < upper.rows ? upper.staging + from * matrix.row_bytes
                                                   : lower.staging + (from - upper.rows) * matrix.row_bytes;
      std::memcpy(gathered_.data() + row * matrix.row_bytes, buffers_.staging.data() + start,
                  size(matrix.row_bytes));
    }
    std::byte* to = place_of(matrix);
    if (!matrix.in_k_blocks) {
      std::memcpy(to, gathered_.data(), size(matrix.bytes()));
      return;
    }
    for (std::int64_t byte = 0; byte < matrix.row_bytes; byte += kIndexedBlockBytes) {
      for (std::int64_t row = 0; row < matrix.rows; ++row) {
        std::memcpy(to, gathered_.data() + row * matrix.row_bytes + byte, kIndexedBlockBytes);
        to += kIndexedBlockBytes;
      }
    }
  }

  const RankPlan& rank_plan_;
  UnpackBuffers buffers_;
  std::vector<GlobalScale> scales_;
  std::vector<IndexedMatrix> matrices_;
  std::unique_ptr<Executor> executor_;
  std::vector<std::int64_t> index_;
  std::vector<std::byte> gathered_;
};

}  // namespace

std::unique_ptr<Unpacking> make_host_unpacking(const RankPlan& rank_plan, UnpackBuffers buffers,
                                               const std::vector<GlobalScale>& scales,
                                               std::vector<IndexedMatrix> matrices) {
  return std::make_unique<HostUnpacking>(rank_plan, std::move(buffers), scales, std::move(matrices));
}

}  // namespace weightcast
