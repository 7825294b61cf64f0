#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "emulated_update.hpp"
#include "model/sharding.hpp"
#include "naive_model.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

using namespace plan_cases;

/// Rows of 80 KB and tensors of megabytes.
naive::Model wide_model() {
  naive::Model model;
  model.hidden = 40'000;
  model.layers = 1;
  model.head_dim = 2;
  model.vocabulary = 64;
  model.inner = 4;
  return model;
}

/// One number for every element of every tensor.
template <typename Number>
class Elements {
 public:
  explicit Elements(const Catalog& catalog) : catalog_(catalog) {
    for (const Tensor& tensor : catalog.tensors()) {
      values_.emplace_back(static_cast<std::size_t>(tensor.shape.elements()), Number{0});
    }
  }
  template <typename Each>
  void in_box(std::uint32_t tensor, const Box& box, Each each) {
    for (std::int64_t row = box.row; row < box.row + box.rows; ++row) {
      for (std::int64_t col = box.col; col < box.col + box.cols; ++col) {
        each(values_[tensor].at(static_cast<std::size_t>(row * catalog_[tensor].shape.cols() + col)));
      }
    }
  }
  bool all(Number number) const {
    return std::all_of(values_.begin(), values_.end(), [&](const auto& of) {
      return std::all_of(of.begin(), of.end(), [&](Number n) { return n == number; });
    });
  }

 private:
  const Catalog& catalog_;
  std::vector<std::vector<Number>> values_;
};

void expect_every_element_once(const Family& family, const Plan& plan) {
  Elements<int> times(family.catalog());
  for_each_segment(plan, [&](const Bucket&, const Segment& segment) {
    times.in_box(segment.tensor, segment.box, [](int& count) { ++count; });
  });
  EXPECT_TRUE(times.all(1));
}

TEST(Plan, EachElementGoesOnceAndToThoseWhoNeedIt) {
  naive::Model dense = small_moe();
  dense.moe = false;
  dense.inner = 80;
  dense.bias = true;
  for (const naive::Model& model : {small_moe(), dense}) {
    const auto family = model.family();
    for (const char* engine :
         {"tp=1", "tp=2,ep=2", "tp=4,ep=2", "tp=8,ep=4", "tp=2,pp=2", "tp=8,replicas=3"}) {
      for (const FanOut fan_out : {FanOut::kNeeded, FanOut::kAll}) {
        SCOPED_TRACE(fmt::format("moe {} {} fan-out {}", model.moe, engine, static_cast<int>(fan_out)));
        const Topology topology = topology_of(3, engine);
        const Plan plan = make_plan(*family, topology, capped(64 << 10, fan_out));
        expect_every_element_once(*family, plan);
        expect_sound_buckets(*family, plan);

        // Bit c of an element: coordinate c has it in some parameter.
        Elements<std::uint32_t> needed(family->catalog());
        for (std::int64_t c = 0; c < topology.engine.replica_ranks(); ++c) {
          for (const Parameter& parameter :
               family->parameters(topology.engine, engine_rank(topology.engine, c))) {
            for (const Part& part : parameter.parts) {
              needed.in_box(part.tensor, part.box, [&](std::uint32_t& bits) { bits |= 1u << c; });
            }
          }
        }
        const std::uint32_t everyone = (1u << topology.engine.replica_ranks()) - 1;
        for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
          std::uint32_t set = 0;
          for (const std::int64_t c : plan.destinations[bucket.destinations]) set |= 1u << c;
          bool same = true;
          needed.in_box(segment.tensor, segment.box, [&](std::uint32_t& bits) {
            same &= set == (fan_out == FanOut::kAll ? everyone : bits);
          });
          EXPECT_TRUE(same) << family->catalog()[segment.tensor].name << " " << segment.box.to_string();
        });
      }
    }
  }
}

/// Fully sharded trainers: of every tensor each holds its run of the rows, the last ones less or nothing;
/// with `copies`, several hold the same.
std::vector<std::vector<Holding>> sharded(const Catalog& catalog, std::int64_t parts, std::int64_t copies) {
  std::vector<std::vector<Holding>> holdings;
  for (std::int64_t trainer = 0; trainer < parts * copies; ++trainer) {
    std::vector<Holding>& held = holdings.emplace_back();
    for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
      const Box whole = Box::whole(catalog[tensor].shape);
      const std::int64_t each = (whole.rows + parts - 1) / parts;
      const Box own{trainer % parts * each, each, 0, whole.cols};
      if (!own.intersect(whole).empty()) held.push_back({tensor, own.intersect(whole)});
    }
  }
  return holdings;
}

TEST(Plan, TrainersThatHoldBoxesSendThoseAlone) {
  const auto family = small_moe().family();
  for (const std::int64_t copies : {1, 2}) {
    for (const char* engine : {"tp=1", "tp=4,ep=2", "tp=2,pp=2"}) {
      SCOPED_TRACE(fmt::format("{} copies, {}", copies, engine));
      Topology topology = topology_of(3 * copies, engine);
      topology.holdings = sharded(family->catalog(), 3, copies);
      const Plan plan = make_plan(*family, topology, capped(64 << 10));
      expect_every_element_once(*family, plan);
      expect_sound_buckets(*family, plan);
      std::vector<std::int64_t> sent(static_cast<std::size_t>(topology.trainers), 0);
      for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
        const auto& held = topology.holdings[bucket.root];
        sent[bucket.root] += segment.box.area();
        EXPECT_TRUE(std::any_of(held.begin(), held.end(),
                                [&](const Holding& holding) {
                                  return holding.tensor == segment.tensor &&
                                         holding.box.contains(segment.box);
                                }))
            << family->catalog()[segment.tensor].name << " " << segment.box.to_string();
      });
      // Whoever holds something sends something, copies as well.
      EXPECT_GT(*std::min_element(sent.begin(), sent.end()), 0);
    }
  }
}

TEST(Plan, WhatNoTrainerHoldsIsNamed) {
  const auto family = small_moe().family();
  Topology topology = topology_of(3, "tp=2,ep=2");
  topology.holdings = sharded(family->catalog(), 3, 1);
  const std::uint32_t tensor = topology.holdings[1].back().tensor;
  topology.holdings[1].pop_back();
  try {
    make_plan(*family, topology, capped(64 << 10));
    FAIL() << "planned";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find(family->catalog()[tensor].name), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("no trainer has published"), std::string::npos) << error.what();
  }
}

TEST(Plan, TrainersThatHoldOtherBoxesHaveAnotherHash) {
  const auto family = small_moe().family();
  Topology topology = topology_of(2, "tp=1");
  topology.holdings = sharded(family->catalog(), 2, 1);
  const std::uint64_t hash = make_plan(*family, topology, capped(64 << 10)).hash;
  std::swap(topology.holdings[0], topology.holdings[1]);
  EXPECT_NE(make_plan(*family, topology, capped(64 << 10)).hash, hash);
}

TEST(Plan, CapHoldsForTensorsAndRowsThatAreLarger) {
  const auto family = wide_model().family();
  for (const std::int64_t cap : {64 << 10, (64 << 10) + 1, 70'001, 100'000, 1 << 20}) {
    for (const std::int64_t trainers : {1, 3}) {
      SCOPED_TRACE(fmt::format("cap {} trainers {}", cap, trainers));
      const Plan plan = make_plan(*family, topology_of(trainers, "tp=2"), capped(cap));
      expect_every_element_once(*family, plan);
      expect_sound_buckets(*family, plan);
    }
  }
}

TEST(Plan, BucketsAreFilledWell) {
  const auto family = small_moe().family();
  const Plan plan = make_plan(*family, topology_of(1, "tp=1"), capped(256 << 10));
  // One route: only its last bucket may be less than three quarters full.
  ASSERT_EQ(plan.destinations.size(), 1u);
  for (std::size_t b = 0; b + 1 < plan.buckets.size(); ++b) EXPECT_GE(plan.buckets[b].bytes, 192 << 10);
  EXPECT_LE(plan.wire_bytes(),
            family->catalog().bytes() + 256 * static_cast<std::int64_t>(plan.segments.size()));
}

TEST(Plan, MixedDtypesKeepAlignmentAndArriveWhole) {
  Catalog catalog;
  naive::Weights weights;
  std::uint8_t fill = 1;
  for (const DTypeInfo& info : dtype_table()) {
    const std::string name(info.name);
    for (const auto& [kind, shape] : {std::pair<std::string, Shape>{"whole.", {3, 7}},
                                      {"vector.", {301}},
                                      {"cut.", {51, 90}},
                                      {"vocabulary.", {333, 5}}}) {
      catalog.add(kind + name, info.dtype, shape);
      auto& bytes = weights[kind + name];
      bytes.resize(static_cast<std::size_t>(shape.elements() * info.bytes));
      for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(fill = static_cast<std::uint8_t>(fill * 5 + 3));
    }
  }
  const auto parameters = [](const Catalog& tensors, const EngineLayout& layout, const EngineRank& rank) {
    const TensorParallel tp(tensors, layout.tp, rank.tp);
    std::vector<Parameter> result;
    for (const Tensor& tensor : tensors.tensors()) {
      result.push_back(tensor.name.starts_with("cut.")          ? tp.row_parallel(tensor.name, tensor.name)
                       : tensor.name.starts_with("vocabulary.") ? tp.vocabulary(tensor.name, tensor.name)
                                                                : tp.replicated(tensor.name, tensor.name));
    }
    return result;
  };
  const ListedFamily family(catalog, parameters);
  const Plan plan = make_plan(family, topology_of(2, "tp=2,replicas=2"), capped(64 << 10));
  expect_every_element_once(family, plan);
  expect_sound_buckets(family, plan);
  const std::vector<EmulatedRank> ranks = emulate_update(plan, family, weights);
  for (std::size_t r = 2; r < ranks.size(); ++r) {
    const std::size_t t = r % 2;
    for (std::size_t p = 0; p < ranks[r].parameters.size(); ++p) {
      const Tensor& tensor = catalog[static_cast<std::uint32_t>(p)];
      const std::vector<std::byte>& whole = weights[tensor.name];
      std::vector<std::byte> expected;
      const auto element = static_cast<std::size_t>(dtype_bytes(tensor.dtype));
      const auto copy = [&](std::size_t from, std::size_t count) {
        const auto first = whole.begin() + static_cast<std::ptrdiff_t>(from * element);
        expected.insert(expected.end(), first, first + static_cast<std::ptrdiff_t>(count * element));
      };
      if (tensor.name.starts_with("cut.")) {
        for (std::size_t row = 0; row < 51; ++row) copy(row * 90 + t * 45, 45);
      } else if (tensor.name.starts_with("vocabulary.")) {
        // 333 rows are padded to 384, 192 a rank.
        constexpr std::size_t kRank = std::size_t{192} * 5;
        copy(t * kRank, t == 0 ? kRank : std::size_t{333 - 192} * 5);
        expected.resize(kRank * element);
      } else {
        expected = whole;
      }
      EXPECT_TRUE(ranks[r].parameters[p] == expected) << "rank " << r << " " << tensor.name;
    }
  }
}

TEST(Plan, LargeSegmentsTravelAloneAndArriveWhereTheyBelong) {
  naive::Model model = small_moe();
  model.hidden = 512;
  model.expert_inner = 320;
  const auto family = model.family();
  for (const bool colocate : {false, true}) {
    SCOPED_TRACE(colocate);
    const Topology topology = topology_of(2, "tp=2,ep=2", colocate);
    const Plan plan = make_plan(*family, topology, capped(2 << 20));
    const naive::Weights weights = naive::random_weights(model, 1);
    const std::vector<EmulatedRank> ranks = emulate_update(plan, *family, weights);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      const RankPlan& rank_plan = ranks[r].rank_plan;
      std::size_t direct = 0;
      for (const Message& message : rank_plan.messages) {
        const bool alone = message.segment != Message::kNone;
        EXPECT_TRUE(alone || message.move == Message::kNone);
        EXPECT_GE(message.bytes, alone ? kDirectBytes : 1);
        direct += message.move != Message::kNone ? 1 : 0;
      }
      const auto rank = topology.inference_rank(static_cast<std::int64_t>(r));
      if (!rank) continue;
      // Its four experts' gate and up of two layers; o_proj is cut and so goes through staging.
      EXPECT_GE(direct, colocate ? 1u : 16u);
      expect_parameters(ranks[r], naive::parameters(model, topology.engine, {0, 0, *rank}, weights));
    }
  }
}

TEST(Plan, FanOutAllIsOneSetOfEverybody) {
  const auto family = small_moe().family();
  const Plan plan =
      make_plan(*family, topology_of(2, "tp=4,ep=2,replicas=2"), capped(64 << 10, FanOut::kAll));
  ASSERT_EQ(plan.destinations.size(), 1u);
  EXPECT_EQ(plan.destinations[0], (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(plan.destination_ranks(0), (std::vector<std::int64_t>{2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(plan.routes(), 2);
}

TEST(Plan, NeededSendsEachShardToOneRankOfEveryReplica) {
  const auto family = small_moe().family();
  const Plan plan = make_plan(*family, topology_of(1, "tp=4,ep=4,replicas=2"), capped(64 << 10));
  for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
    const std::string& name = family->catalog()[segment.tensor].name;
    const std::size_t marker = name.find(".experts.");
    if (marker == std::string::npos) return;
    const std::int64_t expert = std::stoll(name.substr(marker + 9));
    EXPECT_EQ(plan.destination_ranks(bucket.destinations),
              (std::vector<std::int64_t>{1 + expert / 2, 5 + expert / 2}))
        << name;
  });
}

}  // namespace

}  // namespace weightcast
