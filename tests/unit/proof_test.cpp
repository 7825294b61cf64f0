#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "plan/proof.hpp"

namespace weightcast {

namespace {

/// A plan of hand-made segments, one bucket each.
struct Sent {
  Catalog catalog;
  Plan plan;

  Sent() {
    catalog.add("first", DType::kBF16, {10, 8});
    catalog.add("second", DType::kF32, {6});
    plan.limits.bucket_bytes = Limits::kLeastBucketBytes;
    // Both travel as values.
    for (const Tensor& tensor : catalog.tensors()) {
      plan.wire.emplace_back().element_bytes = dtype_bytes(tensor.dtype);
    }
  }

  Sent& add(std::uint32_t tensor, const Box& box) {
    return add(tensor, box, box.area() * dtype_bytes(catalog[tensor].dtype));
  }

  Sent& add(std::uint32_t tensor, const Box& box, std::int64_t bytes) {
    plan.buckets.push_back({0, 0, static_cast<std::uint32_t>(plan.segments.size()), 1, bytes});
    plan.segments.push_back({tensor, box, 0});
    return *this;
  }

  /// What the proof objects to; empty when it is content.
  std::string objection() const {
    try {
      prove_sent_once(plan, catalog);
    } catch (const InternalError& error) {
      return error.what();
    }
    return "";
  }
};

constexpr Box kSecond{0, 1, 0, 6};

bool names(const std::string& text, const char* word) {
  return text.find(word) != std::string::npos;
}

TEST(SentOnce, WholeTensorsAndTilesAreFine) {
  EXPECT_EQ(Sent().add(0, {0, 10, 0, 8}).add(1, kSecond).objection(), "");
  // Tiles of unlike sizes, in no order.
  EXPECT_EQ(Sent()
                .add(0, {4, 6, 5, 3})
                .add(1, {0, 1, 4, 2})
                .add(0, {0, 4, 0, 8})
                .add(0, {4, 2, 0, 5})
                .add(0, {6, 4, 0, 5})
                .add(1, {0, 1, 0, 4})
                .objection(),
            "");
}

TEST(SentOnce, AHoleIsFound) {
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 0, 7}).add(1, kSecond).objection(), "first"));
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 0, 8}).objection(), "second"));
  EXPECT_TRUE(names(Sent().objection(), "first"));
}

TEST(SentOnce, ADoubleSendIsFound) {
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 0, 8}).add(0, {0, 10, 0, 8}).add(1, kSecond).objection(), "first"));
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 0, 8}).add(1, kSecond).add(1, {0, 1, 5, 1}).objection(), "second"));
}

TEST(SentOnce, AnOverlapThatHidesAHoleIsFound) {
  // The area is right in each case.
  EXPECT_TRUE(names(Sent().add(0, {0, 5, 0, 8}).add(0, {4, 5, 0, 8}).add(1, kSecond).objection(), "first"));
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 0, 4}).add(0, {0, 10, 3, 4}).add(1, kSecond).objection(), "first"));
  EXPECT_TRUE(names(
      Sent().add(0, {0, 10, 0, 4}).add(0, {0, 5, 4, 4}).add(0, {3, 5, 4, 4}).add(1, kSecond).objection(),
      "first"));
  EXPECT_TRUE(
      names(Sent().add(0, {0, 10, 0, 8}).add(1, {0, 1, 0, 4}).add(1, {0, 1, 3, 2}).objection(), "second"));
}

TEST(SentOnce, ABoxBeyondTheEdgeThatHidesAHoleIsFound) {
  EXPECT_TRUE(names(Sent().add(0, {0, 5, 0, 8}).add(0, {6, 5, 0, 8}).add(1, kSecond).objection(), "first"));
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 1, 8}).add(1, kSecond).objection(), "first"));
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 0, 8}).add(1, {1, 1, 0, 6}).objection(), "second"));
}

TEST(SentOnce, ABucketThatEndsElsewhereIsFound) {
  EXPECT_TRUE(names(Sent().add(0, {0, 10, 0, 8}, 161).add(1, kSecond).objection(), "ends at 160"));
}

TEST(SentOnce, SegmentsThatOverlapInTheBucketAreFound) {
  Sent sent;
  sent.add(0, {0, 5, 0, 8}).add(1, kSecond);
  sent.plan.segments.insert(sent.plan.segments.begin() + 1, {0, {5, 5, 0, 8}, 79});
  sent.plan.buckets[0].segments = 2;
  sent.plan.buckets[0].bytes = 159;
  sent.plan.buckets[1].first_segment = 2;
  EXPECT_TRUE(names(sent.objection(), "overlap"));
}

TEST(SentOnce, ABucketBeyondTheCapIsFound) {
  Sent sent;
  sent.add(0, {0, 10, 0, 8}).add(1, kSecond);
  sent.plan.limits.bucket_bytes = 160;
  EXPECT_EQ(sent.objection(), "");
  sent.plan.limits.bucket_bytes = 159;
  EXPECT_TRUE(names(sent.objection(), "cap"));
}

TEST(SentOnce, RandomTilingsAreFineAndRandomDamageIsFound) {
  std::mt19937 random(1);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<unsigned>(n));
  };
  for (int round = 0; round < 300; ++round) {
    std::vector<Box> tiles{{0, 10, 0, 8}};
    for (int cut = 0; cut < 12; ++cut) {
      Box& box = tiles[random() % tiles.size()];
      Box rest = box;
      const bool by_rows = random() % 2 == 0;
      std::int64_t& count = by_rows ? box.rows : box.cols;
      if (count < 2) continue;
      const std::int64_t at = 1 + below(count - 1);
      (by_rows ? rest.row : rest.col) += at;
      (by_rows ? rest.rows : rest.cols) -= at;
      count = at;
      tiles.push_back(rest);
    }
    std::shuffle(tiles.begin(), tiles.end(), random);
    const auto objection = [&] {
      Sent sent;
      for (const Box& tile : tiles) sent.add(0, tile);
      return sent.add(1, kSecond).objection();
    };
    ASSERT_EQ(objection(), "");
    // Moved, grown or shrunk by one: never a tiling any more.
    Box& victim = tiles[random() % tiles.size()];
    std::int64_t Box::*const field =
        std::vector{&Box::row, &Box::rows, &Box::col, &Box::cols}[static_cast<std::size_t>(below(4))];
    victim.*field += random() % 2 == 0 && victim.*field > 0 ? -1 : 1;
    ASSERT_TRUE(names(objection(), "first")) << round << " " << victim.to_string();
  }
}

/// Two parameters of 40 and 12 bytes.
std::vector<Parameter> two_parameters() {
  return {{"alpha", DType::kBF16, {4, 5}, {}, {}}, {"beta", DType::kF32, {3}, {}, {}}};
}

constexpr Move kBeta{0, 12, 0, 1, 12, 1, MoveOp::kCopy};

std::string objection(std::vector<Move> moves) {
  try {
    prove_written_once(two_parameters(), moves);
  } catch (const InternalError& error) {
    return error.what();
  }
  return "";
}

TEST(WrittenOnce, DenseAndStridedMovesAreFine) {
  EXPECT_EQ(objection({{0, 10, 0, 4, 10, 0, MoveOp::kCopy}, kBeta}), "");
  // Two interleaved column cuts, one of them zeroed, in any order.
  EXPECT_EQ(objection({kBeta, {4, 10, 0, 4, 6, 0, MoveOp::kZero}, {0, 10, 0, 4, 4, 0, MoveOp::kCopy}}), "");
  prove_written_once({}, {});
}

TEST(WrittenOnce, AHoleIsFound) {
  EXPECT_TRUE(names(objection({{0, 10, 0, 4, 10, 0, MoveOp::kCopy}}), "beta"));
  EXPECT_TRUE(names(objection({{0, 10, 0, 3, 10, 0, MoveOp::kCopy}, kBeta}), "alpha"));
  EXPECT_TRUE(names(objection({{0, 10, 0, 4, 9, 0, MoveOp::kCopy}, kBeta}), "alpha"));
  EXPECT_TRUE(names(objection({{1, 39, 0, 1, 39, 0, MoveOp::kCopy}, kBeta}), "alpha"));
}

TEST(WrittenOnce, AnOverlapIsFound) {
  EXPECT_TRUE(names(
      objection({{0, 10, 0, 4, 10, 0, MoveOp::kCopy}, {39, 1, 0, 1, 1, 0, MoveOp::kZero}, kBeta}), "alpha"));
  EXPECT_TRUE(names(objection({{0, 10, 0, 4, 10, 0, MoveOp::kCopy}, kBeta, kBeta}), "beta"));
  EXPECT_TRUE(names(objection({{0, 9, 0, 4, 10, 0, MoveOp::kCopy}, kBeta}), "alpha"));
}

TEST(WrittenOnce, AWriteOutsideIsFound) {
  EXPECT_TRUE(
      names(objection({{0, 10, 0, 4, 10, 0, MoveOp::kCopy}, {0, 13, 0, 1, 13, 1, MoveOp::kCopy}}), "beta"));
  EXPECT_NE(objection({{-1, 41, 0, 1, 41, 0, MoveOp::kCopy}, kBeta}), "");
  // A buffer that there is none of.
  EXPECT_NE(objection({{0, 10, 0, 4, 10, 0, MoveOp::kCopy}, kBeta, {0, 1, 0, 1, 1, 2, MoveOp::kCopy}}), "");
}

}  // namespace

}  // namespace weightcast
