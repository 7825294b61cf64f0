#include "emulated_update.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "core/hash.hpp"
#include "kernels/digest.hpp"
#include "plan/quantizing.hpp"

namespace weightcast {

namespace {

constexpr std::byte kRubbish{0xa5};

std::vector<std::byte> rubbish(std::int64_t bytes) {
  return std::vector<std::byte>(static_cast<std::size_t>(bytes), kRubbish);
}

/// The digest of `box` of a row-major matrix.
std::uint64_t digest_of(const std::byte* matrix, std::int64_t row_bytes, const Box& box, std::int64_t element,
                        const std::string& key) {
  return digest_box(matrix + box.row * row_bytes + box.col * element, row_bytes, box, element,
                    hash_text(key));
}

/// Of float32 values what engines make of them, by the C library's function in double.
std::vector<std::byte> negated_exp_of(const std::vector<std::byte>& values) {
  std::vector<std::byte> result(values.size());
  for (std::size_t at = 0; at < values.size(); at += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, values.data() + at, sizeof value);
    const float made = std::isnan(value) ? std::numeric_limits<float>::quiet_NaN()
                                         : static_cast<float>(-std::exp(static_cast<double>(value)));
    std::memcpy(result.data() + at, &made, sizeof made);
  }
  return result;
}

/// What the digests of a plan must come to, numbered as in the plan, from whole tensors and whole planes.
std::vector<std::uint64_t> expected_digests(const Plan& plan, const Catalog& catalog,
                                            const naive::Weights& weights,
                                            const naive::Quantized& quantized) {
  std::vector<std::uint64_t> digests(plan.digests(), 0);
  struct Planes {
    std::vector<std::byte> codes;
    std::vector<std::byte> scales;
  };
  std::map<std::string, Planes> planes;
  for (const auto& [name, tensor] : quantized) planes[name] = {tensor.codes_plane(), tensor.scales_plane()};
  for (std::size_t number = 0; number < plan.segments.size(); ++number) {
    const Segment& segment = plan.segments[number];
    const Tensor& tensor = catalog[segment.tensor];
    const Box& box = segment.box;
    const auto found = quantized.find(tensor.name);
    if (found == quantized.end()) {
      const std::int64_t element = dtype_bytes(tensor.dtype);
      const std::vector<std::byte>& values = weights.at(tensor.name);
      std::vector<std::byte> made;  // a whole tensor is too large to be copied for each of its pieces
      if (plan.wire[segment.tensor].negated_exp) made = negated_exp_of(values);
      const std::byte* const kept = made.empty() ? values.data() : made.data();
      digests[number] = digest_of(kept, tensor.shape.cols() * element, box, element, tensor.name);
      continue;
    }
    const naive::QuantizedTensor& whole = found->second;
    const auto in_blocks = [&](std::int64_t rows, std::int64_t cols) {
      const std::int64_t row = box.row / rows;
      const std::int64_t col = box.col / cols;
      return Box{row, (box.row + box.rows - 1) / rows + 1 - row, col,
                 (box.col + box.cols - 1) / cols + 1 - col};
    };
    digests[number] = digest_of(planes[tensor.name].codes.data(), whole.code_row_bytes(),
                                in_blocks(1, whole.format.codes_per_byte), 1, tensor.name);
    if (const std::int64_t element = whole.format.scale_bytes; element > 0) {
      digests[plan.segments.size() + number] = digest_of(
          planes[tensor.name].scales.data(), whole.scale_cols() * element,
          in_blocks(whole.format.block_rows, whole.format.block_cols), element, tensor.name + "#scales");
    }
  }
  return digests;
}

/// Both ends of a route cut a bucket into the same messages.
void expect_same_cuts(const RankPlan& a, const RankBucket& in_a, const RankPlan& b, const RankBucket& in_b) {
  const std::span<const Message> left = a.messages_of(in_a);
  const std::span<const Message> right = b.messages_of(in_b);
  EXPECT_TRUE(std::equal(left.begin(), left.end(), right.begin(), right.end(),
                         [](const Message& l, const Message& r) {
                           return l.staging == r.staging && l.bytes == r.bytes && l.segment == r.segment;
                         }));
}

/// What a rank has to do for a bucket; null where it has no part in it.
const RankBucket* find_bucket(const RankPlan& rank_plan, std::uint32_t number) {
  const auto found = std::find_if(rank_plan.buckets.begin(), rank_plan.buckets.end(),
                                  [&](const RankBucket& bucket) { return bucket.bucket == number; });
  return found == rank_plan.buckets.end() ? nullptr : &*found;
}

}  // namespace

/// What the trainer side does.
class EmulatedUpdate::Packer {
 public:
  Packer(const Plan& plan, const Catalog& catalog, const Executor& executor, const naive::Weights& weights,
         const naive::Quantized& quantized)
      : plan_(plan),
        catalog_(catalog),
        executor_(executor),
        expected_(expected_digests(plan, catalog, weights, quantized)) {
    for (const Tensor& tensor : catalog.tensors()) sources_.push_back(weights.at(tensor.name).data());
    find_scales_over_all();
    for (const auto& [name, tensor] : quantized) {
      if (!tensor.format.global) continue;
      const std::uint32_t scope = plan_.wire[catalog.at(name)].scope;
      EXPECT_EQ(globals_.at(scope).stored, tensor.global.stored) << name;
    }
  }

  std::vector<std::byte> pack(const Bucket& bucket) const {
    std::vector<Move> moves;
    std::vector<QuantMove> quants;
    for (std::uint32_t number = bucket.first_segment; number < bucket.first_segment + bucket.segments;
         ++number) {
      const Segment& segment = plan_.segments[number];
      const Tensor& tensor = catalog_[segment.tensor];
      const WireForm& form = plan_.wire[segment.tensor];
      const Box& box = segment.box;
      const std::int64_t element = dtype_bytes(tensor.dtype);
      const std::int64_t pitch = tensor.shape.cols() * element;
      if (form.travels_as_held()) {
        moves.push_back({box.row * pitch + box.col * element, pitch, segment.offset, box.rows,
                         box.cols * element, segment.tensor, MoveOp::kCopy});
      }
      if (form.quantized()) quants.push_back(quant_of(number));
    }
    std::vector<std::byte> staging = rubbish(bucket.bytes);
    executor_.pack(moves, sources_, staging.data());
    std::vector<QuantDigests> digests(quants.size());
    executor_.quantize(quants, {sources_, staging.data()}, globals_, digests);
    for (std::size_t i = 0; i < quants.size(); ++i) {
      EXPECT_EQ(digests[i].codes, expected_[quants[i].segment]);
      EXPECT_EQ(digests[i].scales, expected_[plan_.segments.size() + quants[i].segment]);
    }
    return staging;
  }

  const std::vector<std::uint64_t>& expected() const { return expected_; }
  const std::vector<GlobalScale>& globals() const { return globals_; }

 private:
  QuantMove quant_of(std::uint32_t number) const {
    const Segment& segment = plan_.segments[number];
    QuantMove quant = quant_move(plan_, catalog_, number, segment.box);
    const std::int64_t pitch = catalog_[segment.tensor].shape.cols() * 2;
    quant.values = {
        Space::kSource, segment.tensor, segment.box.row * pitch + segment.box.col * 2, pitch, {}, 0, 0};
    std::visit(Overloaded{[](const ValuesForm&) {},
                          [&](const CodesForm& form) {
                            quant.codes = staged_codes(form, segment);
                            quant.scales = staged_scales(form, segment);
                          }},
               plan_.wire[segment.tensor].kind);
    return quant;
  }

  /// Each trainer looks at what it sends, and the largest of all counts.
  void find_scales_over_all() {
    std::vector<float> largest(plan_.scopes.size(), 0.0f);
    for (std::int64_t trainer = 0; trainer < plan_.topology.trainers; ++trainer) {
      std::vector<QuantMove> quants;
      for (const Bucket& bucket : plan_.buckets) {
        if (bucket.root != trainer) continue;
        for (std::uint32_t i = 0; i < bucket.segments; ++i) {
          const std::uint32_t number = bucket.first_segment + i;
          if (plan_.wire[plan_.segments[number].tensor].quantized()) quants.push_back(quant_of(number));
        }
      }
      std::vector<float> seen(largest.size(), 0.0f);
      executor_.find_largest(quants, {sources_}, seen);
      for (std::size_t i = 0; i < seen.size(); ++i) largest[i] = std::max(largest[i], seen[i]);
    }
    for (const float amax : largest) {
      globals_.push_back(global_scale(plan_.topology.engine.quantizer.value(), amax));
    }
  }

  const Plan& plan_;
  const Catalog& catalog_;
  const Executor& executor_;
  std::vector<const std::byte*> sources_;
  std::vector<std::uint64_t> expected_;
  std::vector<GlobalScale> globals_;
};

EmulatedUpdate::EmulatedUpdate(const Plan& plan, const Family& family)
    : plan_(plan), family_(family), executor_(make_host_executor()) {
  for (std::int64_t r = 0; r < plan.topology.ranks(); ++r) {
    EmulatedRank& rank = ranks_.emplace_back();
    rank.rank_plan = make_rank_plan(plan, family, r);
    for (const Parameter& parameter : rank.rank_plan.parameters) {
      rank.parameters.push_back(rubbish(parameter.bytes()));
    }
    std::vector<std::byte*>& buffers = buffers_.emplace_back();
    for (auto& parameter : rank.parameters) buffers.push_back(parameter.data());
    executor_->unpack(rank.rank_plan.padding, nullptr, buffers);
  }
}

EmulatedUpdate::~EmulatedUpdate() = default;

void EmulatedUpdate::begin(const naive::Weights& weights, const naive::Quantized& quantized) {
  packer_ = std::make_unique<Packer>(plan_, family_.catalog(), *executor_, weights, quantized);
  write_scales_over_all();
}

void EmulatedUpdate::write_scales_over_all() {
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    const std::vector<Parameter>& parameters = ranks_[r].rank_plan.parameters;
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      for (const Scalar& scalar : parameters[p].scalars) {
        const auto scope = std::find(plan_.scopes.begin(), plan_.scopes.end(), scalar.scope);
        if (scope == plan_.scopes.end()) {
          ADD_FAILURE() << parameters[p].name << " has a scale that nobody finds";
          continue;
        }
        const float stored =
            packer_->globals().at(static_cast<std::size_t>(scope - plan_.scopes.begin())).stored;
        const float value = scalar.value(stored);
        std::memcpy(buffers_[r][p] + scalar.offset, &value, 4);
      }
    }
  }
}

/// As the transport does, message by message: into the receiver's staging, or right where its share says it
/// belongs. `packed` is the root's staging buffer.
void EmulatedUpdate::deliver(const Bucket& bucket, const std::vector<std::byte>& packed, std::size_t rank,
                             int times) {
  const RankPlan& rank_plan = ranks_[rank].rank_plan;
  const RankBucket& mine =
      *find_bucket(rank_plan, static_cast<std::uint32_t>(&bucket - plan_.buckets.data()));
  const std::vector<std::byte*>& parameters = buffers_[rank];
  std::vector<std::byte> staging = mine.root ? packed : rubbish(static_cast<std::int64_t>(packed.size()));
  std::int64_t end = 0;
  for (const Message& message : rank_plan.messages_of(mine)) {
    // Messages cover the bucket but for what aligns its segments.
    EXPECT_GE(message.staging, end);
    EXPECT_LT(message.staging - end, kSegmentAlignment);
    end = message.staging + message.bytes;
    if (end > static_cast<std::int64_t>(packed.size())) break;
    const auto bytes = static_cast<std::size_t>(message.bytes);
    std::byte* to = staging.data() + message.staging;
    if (message.move != Message::kNone) {
      const Move& move = rank_plan.moves.at(message.move);
      EXPECT_TRUE(move.dense());
      EXPECT_EQ(move.bytes(), message.bytes);
      EXPECT_FALSE(mine.root);
      to = parameters[move.buffer] + move.offset;
    }
    std::memcpy(to, packed.data() + message.staging, bytes);
  }
  EXPECT_EQ(end, bucket.bytes);
  for (int i = 0; i < times; ++i) {
    executor_->unpack(rank_plan.program(mine), staging.data(), parameters);
    executor_->quantize(rank_plan.quant_program(mine), {{}, staging.data(), parameters}, packer_->globals(),
                        {});
  }
}

void EmulatedUpdate::apply(std::uint32_t number, int times) {
  const Bucket& bucket = plan_.buckets.at(number);
  EXPECT_LE(bucket.bytes, plan_.limits.bucket_bytes);
  const std::vector<std::byte> staging = packer_->pack(bucket);
  const std::vector<std::int64_t> to = plan_.destination_ranks(bucket.destinations);
  const RankPlan& sender = ranks_[bucket.root].rank_plan;
  const RankBucket* sent = find_bucket(sender, number);
  if (sent == nullptr) {
    ADD_FAILURE() << "root " << bucket.root << " does not know of bucket " << number;
    return;
  }
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    const auto rank = static_cast<std::int64_t>(r);
    const RankPlan& rank_plan = ranks_[r].rank_plan;
    const bool destination = std::count(to.begin(), to.end(), rank) == 1;
    const bool root = plan_.topology.trainer(rank) == bucket.root;
    EXPECT_EQ(plan_.receives(bucket.destinations, rank), destination);
    const RankBucket* mine = find_bucket(rank_plan, number);
    EXPECT_EQ(mine != nullptr, destination || root) << "rank " << r << " and bucket " << number;
    if (mine == nullptr) continue;
    EXPECT_EQ(mine->root, root);
    EXPECT_EQ(mine->destination, destination);
    expect_same_cuts(sender, *sent, rank_plan, *mine);
    if (destination) deliver(bucket, staging, r, times);
  }
}

void EmulatedUpdate::verify() const {
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    SCOPED_TRACE(r);
    const RankPlan& rank_plan = ranks_[r].rank_plan;
    std::vector<const std::byte*> parameters(buffers_[r].begin(), buffers_[r].end());
    std::vector<std::uint64_t> written(rank_plan.checks.size());
    executor_->digest(rank_plan.checks, parameters, written);
    for (std::size_t i = 0; i < written.size(); ++i) {
      const std::uint64_t sent = packer_->expected().at(rank_plan.checks[i].digest);
      EXPECT_EQ(written[i], rank_plan.checks[i].widened ? widened_digest(sent) : sent);
    }
    EXPECT_EQ(executor_->first_not_zero(rank_plan.padding, parameters), -1);
  }
}

std::vector<EmulatedRank> emulate_update(const Plan& plan, const Family& family,
                                         const naive::Weights& weights, const naive::Quantized& quantized) {
  EmulatedUpdate update(plan, family);
  for (const EmulatedRank& rank : update.ranks()) {
    // Ranks walk their buckets in the global order.
    EXPECT_TRUE(std::is_sorted(rank.rank_plan.buckets.begin(), rank.rank_plan.buckets.end(),
                               [](const RankBucket& a, const RankBucket& b) { return a.bucket < b.bucket; }));
  }
  update.begin(weights, quantized);
  for (std::uint32_t number = 0; number < plan.buckets.size(); ++number) update.apply(number);
  update.verify();
  return std::move(update.ranks());
}

void expect_parameters(const EmulatedRank& rank, const std::vector<naive::Parameter>& expected) {
  ASSERT_EQ(rank.parameters.size(), expected.size());
  for (std::size_t p = 0; p < expected.size(); ++p) {
    EXPECT_EQ(rank.rank_plan.parameters[p].name, expected[p].name);
    EXPECT_EQ(rank.rank_plan.parameters[p].shape, expected[p].shape) << expected[p].name;
    EXPECT_EQ(dtype_name(rank.rank_plan.parameters[p].dtype), dtype_name(expected[p].dtype))
        << expected[p].name;
    // Not EXPECT_EQ of the vectors: a difference would print megabytes.
    EXPECT_TRUE(rank.parameters[p] == expected[p].bytes) << expected[p].name;
  }
}

}  // namespace weightcast
