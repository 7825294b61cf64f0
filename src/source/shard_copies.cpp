#include "source/shard_copies.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <map>
#include <vector>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "storage/reader.hpp"

namespace weightcast {

namespace {

/// So that the maximum over ranks is that of the one that has it.
std::int64_t positive(std::uint64_t hash) {
  return static_cast<std::int64_t>(hash >> 1 | 1);
}

}  // namespace

std::int64_t sample_of(const Checkpoint& shard) {
  constexpr std::int64_t kMostCols = 4096;
  constexpr std::size_t kFewValues = 16;
  const CheckpointReader reader(shard);
  Hasher hasher;
  std::bitset<256> values;
  std::vector<std::byte> bytes;
  for (const StoredTensor& tensor : shard.tensors) {
    if (tensor.obstacle != nullptr || tensor.bytes() == 0) continue;
    const Box box{tensor.shape.rows() / 2, 1, 0, std::min(kMostCols, tensor.shape.cols())};
    bytes.resize(static_cast<std::size_t>(box.area() * dtype_bytes(tensor.dtype)));
    reader.read(tensor, box, bytes);
    for (const std::byte byte : bytes) values.set(static_cast<std::size_t>(byte));
    hasher.add(tensor.name).add(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  return values.count() > kFewValues ? positive(hasher.digest()) : 0;
}

std::int64_t boxes_of(const HeldWeights& held) {
  Hasher hasher;
  for (const HeldBox& held_box : held.boxes()) {
    const Box& box = held_box.box;
    hasher.add(held_box.tensor).add(box.row).add(box.rows).add(box.col).add(box.cols);
  }
  return positive(hasher.digest());
}

void require_distinct_shards(const std::string& source, std::span<const std::int64_t> samples,
                             std::span<const std::int64_t> boxes) {
  std::map<std::int64_t, std::size_t> first_with;
  for (std::size_t rank = 0; rank < samples.size(); ++rank) {
    if (samples[rank] == 0) continue;
    const auto [other, fresh] = first_with.emplace(samples[rank], rank);
    if (fresh || boxes[other->second] == boxes[rank]) continue;
    throw InputError(
        fmt::format("{}: the shards of trainers {} and {} hold the same values, though they are of different "
                    "parts of the model; was one copied over the other? write the shards again",
                    source, other->second, rank));
  }
}

}  // namespace weightcast
