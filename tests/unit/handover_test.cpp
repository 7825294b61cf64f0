// Which bucket is received when, and which tensor is handed over after which, where parameters lie in a
// window.

#include "session/handover.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "model/allocation.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

/// A window whose tensors are taken when the test says so. Every parameter is a tensor of its own, of the
/// same number; those that `directly` names are elsewhere.
class FakeWindow final : public ParameterWindow {
 public:
  FakeWindow(const RankPlan& rank_plan, std::int64_t limit, const std::string& directly = "none")
      : limit_(limit) {
    for (std::uint32_t p = 0; p < rank_plan.parameters.size(); ++p) {
      memory_.emplace_back(static_cast<std::size_t>(rank_plan.parameters[p].bytes()));
      parameters_.push_back(memory_.back().data());
      if (rank_plan.parameters[p].name.find(directly) == std::string::npos) tensors_[parameters_.back()] = p;
    }
  }

  std::span<std::byte* const> parameters() const { return parameters_; }
  std::size_t size() const { return tensors_.size(); }
  const std::vector<std::uint32_t>& handed() const { return handed_; }
  std::int64_t reserved() const { return reserved_; }
  void take(std::size_t count) { taken_ = count; }

  std::int64_t limit() const override { return limit_; }
  std::optional<std::uint32_t> tensor_at(const std::byte* address) const override {
    const auto found = tensors_.find(address);
    return found == tensors_.end() ? std::nullopt : std::optional(found->second);
  }
  void begin() override {
    handed_.clear();
    taken_ = 0;
    reserved_ = 0;
  }
  void reserve(std::byte* /*address*/, std::int64_t bytes) override { reserved_ += bytes; }
  void hand_over(std::uint32_t tensor) override {
    handed_.push_back(tensor);
    ++count_;
  }
  std::size_t taken() override { return takes_at_once ? count_.load() : taken_.load(); }

  bool takes_at_once = false;

 private:
  std::int64_t limit_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<std::byte*> parameters_;
  std::map<const std::byte*, std::uint32_t> tensors_;
  std::vector<std::uint32_t> handed_;
  std::atomic<std::size_t> count_ = 0;
  std::atomic<std::size_t> taken_ = 0;
  std::int64_t reserved_ = 0;
};

/// What one engine of the whole model receives from two trainers, each of which has a tensor under way.
class HandoverTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kBucket = 64 << 10;

  HandoverTest() {
    topology_.trainers = 2;
    topology_.engine = parse_inference_allocation("--inference-alloc", "hf");
    plan_ = make_plan(*family_, topology_, plan_cases::capped(kBucket));
    rank_plan_ = make_rank_plan(plan_, *family_, topology_.trainers);
  }

  Handover handover(FakeWindow& window) const {
    return {plan_, family_->catalog(), rank_plan_, window.parameters(), window};
  }

  std::unique_ptr<Family> family_ = plan_cases::small_moe().family();
  Topology topology_;
  Plan plan_;
  RankPlan rank_plan_;
};

TEST_F(HandoverTest, EveryTensorIsHandedOverOnceWhenItsLastBucketIsThere) {
  FakeWindow window(rank_plan_, std::int64_t{1} << 40);
  Handover handover = this->handover(window);
  for (int update = 0; update < 2; ++update) {
    handover.begin();
    std::vector<std::int64_t> missing;
    for (const Parameter& parameter : rank_plan_.parameters) missing.push_back(parameter.bytes());
    for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
      handover.look();
      ASSERT_TRUE(handover.has_room(k));
      handover.start(k);
      EXPECT_FALSE(handover.is_over());
      const RankBucket& bucket = rank_plan_.buckets[k];
      std::size_t whole = window.handed().size();
      for (const Move& move : std::span(rank_plan_.moves).subspan(bucket.first_move, bucket.moves)) {
        if ((missing[move.buffer] -= move.rows * move.row_bytes) == 0) ++whole;
      }
      handover.arrived(k, {}, {});
      EXPECT_EQ(window.handed().size(), whole);
    }
    EXPECT_EQ(window.handed().size(), rank_plan_.parameters.size());
    std::vector<std::uint32_t> handed = window.handed();
    std::ranges::sort(handed);
    EXPECT_EQ(std::ranges::adjacent_find(handed), handed.end());
    EXPECT_GE(window.reserved(),
              rank_plan_.parameter_bytes - 4096 * static_cast<std::int64_t>(handed.size()));
    handover.look();
    EXPECT_FALSE(handover.is_over());
    window.take(handed.size());
    handover.look();
    EXPECT_TRUE(handover.is_over());
  }
}

TEST_F(HandoverTest, ABucketWaitsForRoomOnlyWhileSomethingCanMakeIt) {
  constexpr std::int64_t kLimit = 4 * kBucket;
  FakeWindow window(rank_plan_, kLimit);
  Handover handover = this->handover(window);
  handover.begin();
  std::size_t next = 0;
  const auto start_all = [&] {
    const std::size_t first = next;
    while (next < rank_plan_.buckets.size() && handover.has_room(next)) handover.start(next++);
    return next - first;
  };
  std::size_t arrived = 0;
  std::size_t waits = 0;
  while (arrived < rank_plan_.buckets.size()) {
    handover.look();
    start_all();
    // Nothing waits for itself: there is something under way, or to be taken.
    if (arrived == next) {
      ++waits;
      ASSERT_GT(window.handed().size(), 0);
      window.take(window.handed().size());
      handover.look();
      ASSERT_GT(start_all(), 0);
    }
    handover.arrived(arrived++, {}, {});
  }
  EXPECT_GT(waits, 1);
}

TEST_F(HandoverTest, WithoutRoomForOneBucketTheyComeOneByOne) {
  FakeWindow window(rank_plan_, 1);
  Handover handover = this->handover(window);
  handover.begin();
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    ASSERT_TRUE(handover.has_room(k));
    handover.start(k);
    EXPECT_TRUE(k + 1 == rank_plan_.buckets.size() || !handover.has_room(k + 1));
    handover.arrived(k, {}, {});
    window.take(window.handed().size());
    handover.look();
  }
  EXPECT_TRUE(handover.is_over());
}

TEST_F(HandoverTest, WhatIsWrittenInPlaceWaitsForNothing) {
  FakeWindow window(rank_plan_, 1, "mlp");
  Handover handover = this->handover(window);
  handover.begin();
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    const RankBucket& bucket = rank_plan_.buckets[k];
    const auto moves = std::span(rank_plan_.moves).subspan(bucket.first_move, bucket.moves);
    const bool direct = std::ranges::none_of(moves, [&](const Move& move) {
      return window.tensor_at(window.parameters()[move.buffer]).has_value();
    });
    EXPECT_TRUE(!direct || handover.has_room(k));
    handover.start(k);
    handover.arrived(k, {}, {});
  }
  EXPECT_GT(window.size(), 0);
  EXPECT_LT(window.size(), rank_plan_.parameters.size());
  EXPECT_EQ(window.handed().size(), window.size());
}

TEST_F(HandoverTest, NothingIsHandedOverThatArrivedWrong) {
  FakeWindow window(rank_plan_, std::int64_t{1} << 40);
  Handover handover = this->handover(window);
  handover.begin();
  std::vector<std::uint64_t> expected(plan_.digests());
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = 1000 + i;
  const auto arrive = [&](std::size_t k, bool flipped) {
    handover.start(k);
    const RankBucket& bucket = rank_plan_.buckets[k];
    std::vector<std::uint64_t> written;
    for (const DigestBox& check : rank_plan_.digest_program(bucket))
      written.push_back(expected[check.digest]);
    if (flipped) written.back() ^= 1;
    handover.arrived(k, written, expected);
  };
  arrive(0, false);
  const std::size_t before = window.handed().size();
  try {
    arrive(1, true);
    FAIL() << "nobody has noticed";
  } catch (const VerifyError& error) {
    EXPECT_NE(std::string(error.what()).find("does not hold what was sent of tensor"), std::string::npos);
  }
  const Move& wrong = rank_plan_.moves[rank_plan_.buckets[1].first_move + rank_plan_.buckets[1].moves - 1];
  for (std::size_t i = before; i < window.handed().size(); ++i) EXPECT_NE(window.handed()[i], wrong.buffer);
}

TEST_F(HandoverTest, OneThreadReceivesAndOneUnpacks) {
  FakeWindow window(rank_plan_, 2 * kBucket);
  window.takes_at_once = true;
  Handover handover = this->handover(window);
  handover.begin();
  std::atomic<std::size_t> started = 0;
  std::thread unpacks([&] {
    for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
      while (started <= k) std::this_thread::yield();
      handover.arrived(k, {}, {});
    }
  });
  for (std::size_t k = 0; k < rank_plan_.buckets.size(); ++k) {
    do {
      handover.look();
    } while (!handover.has_room(k));
    handover.start(k);
    started = k + 1;
  }
  while (!handover.is_over()) handover.look();
  unpacks.join();
  EXPECT_EQ(window.handed().size(), rank_plan_.parameters.size());
}

}  // namespace

}  // namespace weightcast
