#include "emulated_update.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "core/hash.hpp"
#include "kernels/digest.hpp"
#include "kernels/executor.hpp"

namespace weightcast {

namespace {

constexpr std::byte kRubbish{0xa5};

std::vector<std::byte> rubbish(std::int64_t bytes) {
  return std::vector<std::byte>(static_cast<std::size_t>(bytes), kRubbish);
}

/// What the trainer side does, for one bucket.
class Packer {
 public:
  Packer(const Plan& plan, const Catalog& catalog, const naive::Weights& weights)
      : plan_(plan), catalog_(catalog), sent_(plan.segments.size(), 0) {
    for (const Tensor& tensor : catalog.tensors()) sources_.push_back(weights.at(tensor.name).data());
  }

  std::vector<std::byte> pack(const Bucket& bucket) {
    std::vector<Move> program;
    for (std::uint32_t number = bucket.first_segment; number < bucket.first_segment + bucket.segments;
         ++number) {
      const Segment& segment = plan_.segments[number];
      const Tensor& tensor = catalog_[segment.tensor];
      const Box& box = segment.box;
      const std::int64_t element = dtype_bytes(tensor.dtype);
      const std::int64_t pitch = tensor.shape.cols() * element;
      const std::int64_t offset = box.row * pitch + box.col * element;
      program.push_back(
          {offset, pitch, segment.offset, box.rows, box.cols * element, segment.tensor, MoveOp::kCopy});
      sent_[number] =
          digest_box(sources_[segment.tensor] + offset, pitch, box, element, hash_text(tensor.name));
    }
    std::vector<std::byte> staging = rubbish(bucket.bytes);
    executor_->pack(program, sources_, staging.data());
    return staging;
  }

  const std::vector<std::uint64_t>& sent() const { return sent_; }

 private:
  const Plan& plan_;
  const Catalog& catalog_;
  std::unique_ptr<Executor> executor_ = make_host_executor();
  std::vector<const std::byte*> sources_;
  std::vector<std::uint64_t> sent_;
};

/// Delivers a bucket as the transport does, message by message: into the receiver's staging, or right where
/// its share says it belongs. `packed` is the root's staging buffer.
void deliver(const Plan& plan, const Share& share, const ShareBucket& mine,
             const std::vector<std::byte>& packed, std::span<std::byte* const> parameters,
             const Executor& executor) {
  std::vector<std::byte> staging = mine.root ? packed : rubbish(static_cast<std::int64_t>(packed.size()));
  std::int64_t end = 0;
  for (const Message& message : share.messages_of(mine)) {
    // Messages cover the bucket but for what aligns its segments.
    EXPECT_GE(message.staging, end);
    EXPECT_LT(message.staging - end, kSegmentAlignment);
    end = message.staging + message.bytes;
    if (end > static_cast<std::int64_t>(packed.size())) break;
    const auto bytes = static_cast<std::size_t>(message.bytes);
    std::byte* to = staging.data() + message.staging;
    if (message.move != Message::kNone) {
      const Move& move = share.moves.at(message.move);
      EXPECT_TRUE(move.dense());
      EXPECT_EQ(move.bytes(), message.bytes);
      EXPECT_FALSE(mine.root);
      to = parameters[move.buffer] + move.offset;
    }
    std::memcpy(to, packed.data() + message.staging, bytes);
  }
  EXPECT_EQ(end, plan.buckets[mine.bucket].bytes);
  executor.unpack(share.program(mine), staging.data(), parameters);
}

/// Both ends of a route cut a bucket into the same messages.
void expect_same_cuts(const Share& a, const ShareBucket& in_a, const Share& b, const ShareBucket& in_b) {
  const std::span<const Message> left = a.messages_of(in_a);
  const std::span<const Message> right = b.messages_of(in_b);
  EXPECT_TRUE(std::equal(left.begin(), left.end(), right.begin(), right.end(),
                         [](const Message& l, const Message& r) {
                           return l.staging == r.staging && l.bytes == r.bytes && l.segment == r.segment;
                         }));
}

void verify(const EmulatedRank& rank, const Executor& executor, const std::vector<std::uint64_t>& sent) {
  std::vector<const std::byte*> parameters(rank.parameters.size());
  std::transform(rank.parameters.begin(), rank.parameters.end(), parameters.begin(),
                 [](const auto& parameter) { return parameter.data(); });
  std::vector<std::uint64_t> written(rank.share.checks.size());
  executor.digest(rank.share.checks, parameters, written);
  for (std::size_t i = 0; i < written.size(); ++i) EXPECT_EQ(written[i], sent[rank.share.checks[i].segment]);
  EXPECT_EQ(executor.first_not_zero(rank.share.padding, parameters), -1);
}

}  // namespace

std::vector<EmulatedRank> emulate_update(const Plan& plan, const Family& family,
                                         const naive::Weights& weights) {
  const auto executor = make_host_executor();
  std::vector<EmulatedRank> ranks(static_cast<std::size_t>(plan.topology.ranks()));
  std::vector<std::vector<std::byte*>> buffers(ranks.size());
  std::vector<std::size_t> next(ranks.size(), 0);  // first bucket of the share that has not come
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    EmulatedRank& rank = ranks[r];
    rank.share = make_share(plan, family, static_cast<std::int64_t>(r));
    for (const Parameter& parameter : rank.share.parameters)
      rank.parameters.push_back(rubbish(parameter.bytes()));
    for (auto& parameter : rank.parameters) buffers[r].push_back(parameter.data());
    executor->unpack(rank.share.padding, nullptr, buffers[r]);
  }
  Packer packer(plan, family.catalog(), weights);
  for (std::uint32_t number = 0; number < plan.buckets.size(); ++number) {
    const Bucket& bucket = plan.buckets[number];
    EXPECT_LE(bucket.bytes, plan.limits.bucket_bytes);
    const std::vector<std::byte> staging = packer.pack(bucket);
    const std::vector<std::int64_t> to = plan.destination_ranks(bucket.destinations);
    const Share& sender = ranks[bucket.root].share;
    if (next[bucket.root] >= sender.buckets.size()) {
      ADD_FAILURE() << "root " << bucket.root << " does not know of bucket " << number;
      continue;
    }
    const ShareBucket sent = sender.buckets[next[bucket.root]];
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      const Share& share = ranks[r].share;
      const bool destination = std::count(to.begin(), to.end(), static_cast<std::int64_t>(r)) == 1;
      const bool root = plan.topology.trainer(static_cast<std::int64_t>(r)) == bucket.root;
      EXPECT_EQ(plan.receives(bucket.destinations, static_cast<std::int64_t>(r)), destination);
      if (!destination && !root) continue;
      if (next[r] >= share.buckets.size()) {
        ADD_FAILURE() << "rank " << r << " does not know of bucket " << number;
        continue;
      }
      const ShareBucket& mine = share.buckets[next[r]++];
      EXPECT_EQ(mine.bucket, number);
      EXPECT_EQ(mine.root, root);
      EXPECT_EQ(mine.destination, destination);
      expect_same_cuts(sender, sent, share, mine);
      if (destination) deliver(plan, share, mine, staging, buffers[r], *executor);
    }
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    SCOPED_TRACE(r);
    EXPECT_EQ(next[r], ranks[r].share.buckets.size());
    verify(ranks[r], *executor, packer.sent());
  }
  return ranks;
}

void expect_parameters(const EmulatedRank& rank, const std::vector<naive::Parameter>& expected) {
  ASSERT_EQ(rank.parameters.size(), expected.size());
  for (std::size_t p = 0; p < expected.size(); ++p) {
    EXPECT_EQ(rank.share.parameters[p].name, expected[p].name);
    EXPECT_EQ(rank.share.parameters[p].shape, expected[p].shape) << expected[p].name;
    // Not EXPECT_EQ of the vectors: a difference would print megabytes.
    EXPECT_TRUE(rank.parameters[p] == expected[p].bytes) << expected[p].name;
  }
}

}  // namespace weightcast
