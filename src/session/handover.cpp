#include "session/handover.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "session/verification.hpp"

namespace weightcast {

namespace {

std::int64_t bytes_of(const Move& move) {
  return move.rows * move.row_bytes;
}

}  // namespace

Handover::Handover(const Plan& plan, const Catalog& catalog, const RankPlan& rank_plan,
                   std::span<std::byte* const> parameters, ParameterWindow& window)
    : plan_(plan), catalog_(catalog), rank_plan_(rank_plan), window_(window) {
  for (const std::byte* memory : parameters) tensor_of_.push_back(window.tensor_at(memory));
  for (const QuantMove& quant : rank_plan.quants) {
    if (!tensor_of_[quant.codes.buffer]) continue;
    throw UsageError(
        fmt::format("parameter {}: is quantised on its way, but the engine's loader takes the "
                    "model's own tensors; leave --quantize out",
                    rank_plan.parameters[quant.codes.buffer].name));
  }
  const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  const auto number_of_page = [page](const std::byte* address) {
    return reinterpret_cast<std::uintptr_t>(address) / static_cast<std::uintptr_t>(page);
  };
  for (const RankBucket& bucket : rank_plan.buckets) {
    BucketOfWindow& of_window = buckets_.emplace_back();
    for (const Move& move : std::span(rank_plan.moves).subspan(bucket.first_move, bucket.moves)) {
      const auto tensor = tensor_of_[move.buffer];
      if (!tensor) continue;
      const std::int64_t room = round_up(bytes_of(move), page);
      of_window.room += room;
      if (tensors_.size() <= *tensor) tensors_.resize(*tensor + std::size_t{1});
      tensors_[*tensor].bytes += bytes_of(move);
      tensors_[*tensor].room += room;
      const Range range{parameters[move.buffer] + move.offset, (move.rows - 1) * move.pitch + move.row_bytes};
      // Runs in the same page, or in the next one, are one request to the system. A page between them may be
      // a tensor's that has been taken.
      std::vector<Range>& ranges = of_window.ranges;
      if (!ranges.empty() && range.address >= ranges.back().address &&
          number_of_page(range.address) <=
              number_of_page(ranges.back().address + ranges.back().bytes - 1) + 1) {
        ranges.back().bytes =
            std::max(ranges.back().bytes, range.address - ranges.back().address + range.bytes);
      } else {
        ranges.push_back(range);
      }
    }
  }
  handed_.reserve(tensors_.size());
}

void Handover::begin() {
  window_.begin();
  const std::scoped_lock lock(mutex_);
  missing_.clear();
  for (const TensorOfWindow& tensor : tensors_) missing_.push_back(tensor.bytes);
  handed_.clear();
  taken_ = 0;
  in_use_ = 0;
  under_way_ = 0;
}

void Handover::look() {
  const std::size_t taken = window_.taken();
  const std::scoped_lock lock(mutex_);
  for (; taken_ < std::min(taken, handed_.size()); ++taken_) in_use_ -= handed_[taken_];
}

bool Handover::has_room(std::size_t k) const {
  const std::int64_t room = buckets_[k].room;
  const std::scoped_lock lock(mutex_);
  if (room == 0 || in_use_ + room <= window_.limit()) return true;
  return under_way_ == 0 && taken_ == handed_.size();
}

void Handover::start(std::size_t k) {
  const BucketOfWindow& bucket = buckets_[k];
  {
    const std::scoped_lock lock(mutex_);
    in_use_ += bucket.room;
    under_way_ += bucket.room;
  }
  for (const Range& range : bucket.ranges) window_.reserve(range.address, range.bytes);
}

bool Handover::is_over() const {
  const std::scoped_lock lock(mutex_);
  return under_way_ == 0 && taken_ == handed_.size();
}

void Handover::arrived(std::size_t k, std::span<const std::uint64_t> written,
                       std::span<const std::uint64_t> expected) {
  const RankBucket& bucket = rank_plan_.buckets[k];
  for (std::uint32_t i = 0; i < bucket.moves; ++i) {
    const Move& move = rank_plan_.moves[bucket.first_move + i];
    const auto tensor = tensor_of_[move.buffer];
    if (!tensor) continue;
    // A bucket has a check for each of its moves, in their order, before all others.
    const DigestBox& check = rank_plan_.checks[bucket.first_check + i];
    if (!written.empty()) require_written(plan_, catalog_, rank_plan_, check, written[i], expected);
    missing_[*tensor] -= bytes_of(move);
    if (missing_[*tensor] > 0) continue;
    {
      // Before it is the loader's, which may take it at once.
      const std::scoped_lock lock(mutex_);
      handed_.push_back(tensors_[*tensor].room);
    }
    window_.hand_over(*tensor);
  }
  const std::scoped_lock lock(mutex_);
  under_way_ -= buckets_[k].room;
}

}  // namespace weightcast
