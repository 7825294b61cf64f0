// Who of the trainers sends what, and which buckets may travel at once.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "plan/batches.hpp"
#include "plan_cases.hpp"

namespace weightcast {

namespace {

using namespace plan_cases;

Topology with_split(Topology topology, SourceSplit split) {
  topology.source_split = split;
  return topology;
}

/// The expert of a tensor's name, or -1.
std::int64_t expert_of(const std::string& name) {
  const std::string mark = "mlp.experts.";
  const std::size_t at = name.find(mark);
  return at == std::string::npos ? -1 : std::stoll(name.substr(at + mark.size()));
}

std::int64_t bytes_of(const Family& family, const Segment& segment) {
  return segment.box.area() * dtype_bytes(family.catalog()[segment.tensor].dtype);
}

TEST(Division, ByCatalogTrainersSendAlikeMuch) {
  const auto family = small_moe().family();
  for (const std::int64_t trainers : {1, 2, 3, 7}) {
    for (const char* engine : {"tp=1", "tp=2,ep=2", "tp=8,ep=4"}) {
      SCOPED_TRACE(fmt::format("{} trainers, {}", trainers, engine));
      const Plan plan = make_plan(*family, topology_of(trainers, engine), capped(64 << 10));
      std::vector<std::int64_t> bytes(static_cast<std::size_t>(trainers), 0);
      for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
        bytes[bucket.root] += bytes_of(*family, segment);
      });
      // What is too small to be divided goes to whoever has least.
      const auto [least, most] = std::minmax_element(bytes.begin(), bytes.end());
      EXPECT_LE(*most - *least, 2 * Limits::kLeastBucketBytes);
    }
  }
}

TEST(Division, ByExpertTrainersSendTheExpertsThatTheyHold) {
  const naive::Model model = small_moe();
  const auto family = model.family();
  for (const std::int64_t trainers : {2, 3, 8}) {
    for (const FanOut fan_out : {FanOut::kNeeded, FanOut::kAll}) {
      SCOPED_TRACE(trainers);
      const Plan plan =
          make_plan(*family, with_split(topology_of(trainers, "tp=2,ep=2"), SourceSplit::kExpert),
                    capped(64 << 10, fan_out));
      std::set<std::int64_t> experts;
      for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
        const std::int64_t expert = expert_of(family->catalog()[segment.tensor].name);
        if (expert < 0) return;
        experts.insert(expert);
        EXPECT_EQ(bucket.root, expert * trainers / model.experts) << expert;
      });
      EXPECT_EQ(std::ssize(experts), model.experts);
    }
  }
}

TEST(Division, ByRowTrainersSendTheRowsThatTheyHold) {
  const auto family = small_moe().family();
  for (const std::int64_t trainers : {2, 3, 5}) {
    const Plan plan = make_plan(*family, with_split(topology_of(trainers, "tp=4,ep=2"), SourceSplit::kRow),
                                capped(64 << 10));
    // By tensor and root: the rows sent, from the first to the last.
    std::map<std::pair<std::uint32_t, std::uint32_t>, std::pair<std::int64_t, std::int64_t>> rows;
    for_each_segment(plan, [&](const Bucket& bucket, const Segment& segment) {
      const std::int64_t end = segment.box.row + segment.box.rows;
      const auto [found, fresh] =
          rows.emplace(std::pair(segment.tensor, bucket.root), std::pair(segment.box.row, end));
      if (fresh) return;
      found->second.first = std::min(found->second.first, segment.box.row);
      found->second.second = std::max(found->second.second, end);
    });
    for (const auto& [key, sent] : rows) {
      const std::int64_t all = family->catalog()[key.first].shape.rows();
      EXPECT_EQ(sent.first, key.second * all / trainers) << family->catalog()[key.first].name;
      EXPECT_EQ(sent.second, (key.second + 1) * all / trainers) << family->catalog()[key.first].name;
    }
  }
}

/// World ranks that send or receive a bucket.
std::set<std::int64_t> takers(const Plan& plan, const Bucket& bucket) {
  const auto ranks = plan.destination_ranks(bucket.destinations);
  std::set<std::int64_t> result(ranks.begin(), ranks.end());
  result.insert(bucket.root);
  return result;
}

/// How often a rank takes part at most, in what travels and in all, and whether a root or a
/// route comes twice.
struct Load {
  std::int64_t most = 0;
  std::int64_t most_of_all = 0;
  bool root_twice = false;
  bool route_twice = false;
};

Load load_of(const Plan& plan, std::uint32_t first, std::uint32_t last) {
  Load load;
  std::map<std::int64_t, std::int64_t> times;
  std::map<std::int64_t, std::int64_t> travelling;
  std::set<std::uint32_t> roots;
  std::set<std::pair<std::uint32_t, std::uint32_t>> routes;
  for (std::uint32_t b = first; b < last; ++b) {
    const Bucket& bucket = plan.buckets[b];
    load.root_twice |= !roots.insert(bucket.root).second;
    load.route_twice |= plan.travels(bucket) && !routes.emplace(bucket.root, bucket.destinations).second;
    for (const std::int64_t rank : takers(plan, plan.buckets[b])) {
      load.most_of_all = std::max(load.most_of_all, ++times[rank]);
      if (plan.travels(plan.buckets[b])) load.most = std::max(load.most, ++travelling[rank]);
    }
  }
  return load;
}

TEST(Groups, TravelAtOnceWithinHalfOfTheStaging) {
  const auto family = small_moe().family();
  for (const bool colocate : {false, true}) {
    for (const char* engine : {"tp=1", "tp=2,ep=2", "tp=4,ep=2,replicas=2", "tp=2,pp=2"}) {
      for (const std::int64_t buffers : {2, 3, 4, 8}) {
        for (const SourceSplit split : {SourceSplit::kCatalog, SourceSplit::kExpert}) {
          SCOPED_TRACE(fmt::format("colocate {} {} buffers {} split {}", colocate, engine, buffers,
                                   static_cast<int>(split)));
          Limits limits = capped(64 << 10);
          limits.buffers = buffers;
          const Plan plan = make_plan(*family, with_split(topology_of(3, engine, colocate), split), limits);
          const std::vector<std::uint32_t> starts = concurrent_batches(plan);
          ASSERT_GE(starts.size(), 2);
          EXPECT_EQ(starts.front(), 0);
          EXPECT_EQ(starts.back(), plan.buckets.size());
          const std::int64_t half = (buffers + 1) / 2;
          for (std::size_t group = 0; group + 1 < starts.size(); ++group) {
            ASSERT_LT(starts[group], starts[group + 1]);
            const Load load = load_of(plan, starts[group], starts[group + 1]);
            EXPECT_LE(load.most, half);
            EXPECT_LE(load.most_of_all, buffers);
            EXPECT_TRUE(colocate || !load.root_twice);
            EXPECT_FALSE(load.route_twice);
          }
        }
      }
    }
  }
}

TEST(Groups, ColocatedRanksSendAtOnce) {
  const auto family = small_moe().family();
  Limits limits = capped(64 << 10);
  limits.buffers = 4;
  const Plan plan = make_plan(*family, topology_of(0, "tp=2,ep=2", true), limits);
  // Two ranks, each a root: with room for two buckets on each of them nearly all travel in pairs.
  EXPECT_LE(concurrent_batches(plan).size(), plan.buckets.size() * 2 / 3);
}

TEST(Groups, ColocatedRanksSendToAllTheirPeersAtOnce) {
  constexpr std::uint32_t kRanks = 4;
  constexpr std::uint32_t kRounds = 5;
  Plan plan;
  plan.topology = topology_of(0, "tp=4,ep=4", true);
  plan.limits.buffers = 12;
  for (std::int64_t c = 0; c < kRanks; ++c) plan.destinations.push_back({c});
  // In each round what a rank hands to itself, and then to each of its peers.
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    for (std::uint32_t distance = 0; distance < kRanks; ++distance) {
      for (std::uint32_t root = 0; root < kRanks; ++root) {
        Bucket bucket;
        bucket.root = root;
        bucket.destinations = (root + distance) % kRanks;
        plan.buckets.push_back(bucket);
      }
    }
  }
  const std::vector<std::uint32_t> starts = concurrent_batches(plan);
  ASSERT_EQ(starts.size(), kRounds + 1);
  for (std::size_t group = 0; group < kRounds; ++group) {
    std::set<std::pair<std::uint32_t, std::uint32_t>> pairs;
    for (std::uint32_t b = starts[group]; b < starts[group + 1]; ++b) {
      if (plan.travels(plan.buckets[b])) pairs.emplace(plan.buckets[b].root, plan.buckets[b].destinations);
    }
    EXPECT_EQ(pairs.size(), kRanks * (kRanks - 1)) << group;
  }
}

TEST(Groups, StagingIsDividedForPeers) {
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  const auto divided = [&](const char* engine, bool colocate, std::int64_t bucket, std::int64_t buffers,
                           double share) {
    Limits limits;
    limits.bucket_bytes = bucket * kMiB;
    limits.buffers = buffers;
    const Limits result = divided_for_peers(topology_of(1, engine, colocate), limits, share);
    EXPECT_LE(result.buffers * result.bucket_bytes, limits.buffers * limits.bucket_bytes);
    return std::pair(result.bucket_bytes / kMiB, result.buffers);
  };
  using Pair = std::pair<std::int64_t, std::int64_t>;
  EXPECT_EQ(divided("tp=2", true, 256, 3, 0.5), Pair(192, 4));
  EXPECT_EQ(divided("tp=4", true, 256, 3, 0.75), Pair(64, 12));
  EXPECT_EQ(divided("tp=4", true, 512, 8, 0.75), Pair(341, 12));
  EXPECT_EQ(divided("tp=8", true, 256, 3, 0.9), Pair(64, 12));
  // Little travels, or nobody is both; or buckets are as small as pieces already.
  EXPECT_EQ(divided("tp=4", true, 256, 3, 0.1), Pair(256, 3));
  EXPECT_EQ(divided("tp=4", false, 256, 3, 1), Pair(256, 3));
  EXPECT_EQ(divided("tp=4", true, 64, 3, 0.75), Pair(64, 3));
  EXPECT_EQ(divided("tp=4", true, 128, 16, 0.75), Pair(128, 16));
}

}  // namespace

}  // namespace weightcast
