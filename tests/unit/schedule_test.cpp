#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "plan/batches.hpp"
#include "plan_cases.hpp"
#include "session/schedule.hpp"

namespace weightcast {

namespace {

constexpr std::size_t kNone = StagingSlots::kNone;

class Random {
 public:
  explicit Random(std::uint64_t seed) : random_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool one_in(std::int64_t n) { return between(1, n) == 1; }

 private:
  std::mt19937_64 random_;
};

/// Buckets of anything from anybody to anybody: a schedule asks for no more.
Plan random_plan(Random& random) {
  Plan plan;
  plan.topology.engine.tp = random.between(1, 4);
  plan.topology.engine.pp = random.between(1, 2);
  plan.topology.engine.replicas = random.between(1, 2);
  plan.topology.colocate = random.one_in(2);
  plan.topology.trainers = plan.topology.colocate ? plan.topology.engine.ranks() : random.between(1, 4);
  plan.limits.buffers = random.between(1, 7);
  plan.wire.resize(3);
  for (WireForm& form : plan.wire) {
    if (random.one_in(3)) form.kind = CodesForm();
  }
  const std::int64_t sets = random.between(1, 8);
  for (std::int64_t i = 0; i < sets; ++i) {
    std::set<std::int64_t> set;
    const std::int64_t coordinates = plan.topology.engine.replica_ranks();
    const std::int64_t count = random.one_in(2) ? 1 : random.between(1, coordinates);
    while (std::ssize(set) < count) set.insert(random.between(0, coordinates - 1));
    plan.destinations.emplace_back(set.begin(), set.end());
  }
  const std::int64_t buckets = random.one_in(10) ? 0 : random.between(1, 60);
  for (std::int64_t b = 0; b < buckets; ++b) {
    Bucket bucket;
    bucket.root = static_cast<std::uint32_t>(random.between(0, plan.topology.trainers - 1));
    bucket.destinations = static_cast<std::uint32_t>(random.between(0, sets - 1));
    bucket.first_segment = static_cast<std::uint32_t>(plan.segments.size());
    bucket.segments = static_cast<std::uint32_t>(random.between(1, 3));
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      plan.segments.push_back({static_cast<std::uint32_t>(random.between(0, 2)), {}, 0});
    }
    plan.buckets.push_back(bucket);
  }
  return plan;
}

/// The buckets of a rank's share, without what is in them.
RankPlan buckets_of(const Plan& plan, std::int64_t rank) {
  RankPlan rank_plan;
  for (std::uint32_t number = 0; number < plan.buckets.size(); ++number) {
    RankBucket bucket;
    bucket.bucket = number;
    bucket.root = plan.topology.trainer(rank) == plan.buckets[number].root;
    bucket.destination = plan.receives(plan.buckets[number].destinations, rank);
    if (bucket.root || bucket.destination) rank_plan.buckets.push_back(bucket);
  }
  return rank_plan;
}

/// Whether anybody but `rank` sends or receives a bucket, or it is packed as codes.
bool needs_staging(const Plan& plan, const Bucket& bucket, std::int64_t rank) {
  std::set<std::int64_t> ranks{rank};
  for (const std::int64_t to : plan.destination_ranks(bucket.destinations)) ranks.insert(to);
  for (std::int64_t other = 0; other < plan.topology.ranks(); ++other) {
    if (plan.topology.trainer(other) == bucket.root) ranks.insert(other);
  }
  if (ranks.size() > 1) return true;
  for (std::uint32_t i = 0; i < bucket.segments; ++i) {
    const WireForm& form = plan.wire[plan.segments[bucket.first_segment + i].tensor];
    if (std::holds_alternative<CodesForm>(form.kind)) return true;
  }
  return false;
}

/// The number of each plan bucket's group.
std::vector<std::size_t> group_numbers(const Plan& plan) {
  const std::vector<std::uint32_t> starts = concurrent_batches(plan);
  std::vector<std::size_t> numbers;
  for (std::uint32_t b = 0; b < plan.buckets.size(); ++b) {
    std::size_t batch = 0;
    while (starts[batch + 1] <= b) ++batch;
    numbers.push_back(batch);
  }
  return numbers;
}

/// Some of the buckets that leave a rank, as if their routes went directly; now and then all or none.
std::vector<bool> random_direct(const Plan& plan, Random& random) {
  const std::int64_t share = random.between(0, 3);
  std::vector<bool> direct;
  for (const Bucket& bucket : plan.buckets) {
    direct.push_back(plan.travels(bucket) && random.between(1, 3) <= share);
  }
  return direct;
}

void expect_staging(const Plan& plan, const RankPlan& rank_plan, std::int64_t rank, bool resident,
                    const std::vector<bool>& direct, const Schedule& schedule) {
  // Whoever needs a slot takes the one that nobody has used for the longest time.
  std::deque<std::pair<std::size_t, std::size_t>> slots;  // and their last users
  for (std::size_t slot = 0; slot < static_cast<std::size_t>(plan.limits.buffers); ++slot) {
    slots.emplace_back(slot, kNone);
  }
  std::size_t first_staged = kNone;
  for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k) {
    const std::uint32_t bucket = rank_plan.buckets[k].bucket;
    const bool directly = !direct.empty() && direct[bucket];
    const bool staged = !directly && (!resident || needs_staging(plan, plan.buckets[bucket], rank));
    ASSERT_EQ(schedule.direct(k), directly) << k;
    ASSERT_EQ(schedule.staged(k), staged) << k;
    ASSERT_EQ(schedule.local(k), !staged && !directly) << k;
    if (!staged) {
      EXPECT_TRUE(directly || (rank_plan.buckets[k].root && rank_plan.buckets[k].destination));
      EXPECT_EQ(schedule.slots().slot(k), kNone);
      EXPECT_EQ(schedule.slots().before(k), kNone);
      continue;
    }
    const auto [slot, user] = slots.front();
    EXPECT_EQ(schedule.slots().slot(k), slot) << k;
    EXPECT_EQ(schedule.slots().before(k), user) << k;
    slots.pop_front();
    slots.emplace_back(slot, k);
    if (first_staged == kNone) first_staged = k;
  }
  EXPECT_EQ(schedule.first_staged(), first_staged);
}

void expect_groups(const Plan& plan, const RankPlan& rank_plan, const Schedule& schedule) {
  const std::vector<std::size_t> numbers = group_numbers(plan);
  std::map<std::size_t, std::vector<std::size_t>> expected;
  for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k)
    expected[numbers[rank_plan.buckets[k].bucket]].push_back(k);
  std::vector<std::vector<std::size_t>> found;
  for (const Schedule::Batch batch : schedule.batches()) {
    std::vector<std::size_t>& buckets = found.emplace_back();
    std::set<std::size_t> slots;
    for (std::size_t k = batch.first; k < batch.last; ++k) {
      buckets.push_back(k);
      if (!schedule.staged(k)) continue;
      // All of a group are staged at once, in slots that earlier groups have left.
      EXPECT_TRUE(slots.insert(schedule.slots().slot(k)).second);
      const std::size_t before = schedule.slots().before(k);
      EXPECT_TRUE(before == kNone || before < batch.first);
    }
    EXPECT_LE(std::ssize(slots), plan.limits.buffers);
  }
  std::vector<std::vector<std::size_t>> in_order;
  for (const auto& [number, buckets] : expected) in_order.push_back(buckets);
  EXPECT_EQ(found, in_order);
}

/// Alone is what is packed for the first transfers and what the last ones bring; what stays, where there are
/// none.
void expect_alone(const RankPlan& rank_plan, const Schedule& schedule) {
  const auto transfers = [&](Schedule::Batch batch) {
    bool any = false;
    for (std::size_t k = batch.first; k < batch.last; ++k) any = any || !schedule.local(k);
    return any;
  };
  std::size_t before = 0;  // batches with transfers
  std::size_t all = 0;
  for (const Schedule::Batch batch : schedule.batches()) all += transfers(batch) ? 1 : 0;
  for (const Schedule::Batch batch : schedule.batches()) {
    const bool travels = transfers(batch);
    for (std::size_t k = batch.first; k < batch.last; ++k) {
      if (!schedule.local(k)) {
        EXPECT_EQ(schedule.packed_alone(k), before == 0) << k;
        EXPECT_EQ(schedule.unpacked_alone(k), before + 1 == all) << k;
      } else {
        EXPECT_EQ(schedule.unpacked_alone(k), all == 0) << k;
      }
    }
    before += travels ? 1 : 0;
  }
  ASSERT_LE(before, rank_plan.buckets.size());
}

void expect_sound(const Plan& plan, const RankPlan& rank_plan, std::int64_t rank, bool resident,
                  const std::vector<bool>& direct = {}) {
  const Schedule schedule(plan, rank_plan, resident, {}, direct);
  expect_staging(plan, rank_plan, rank, resident, direct, schedule);
  expect_groups(plan, rank_plan, schedule);
  expect_alone(rank_plan, schedule);
}

/// What the ranks of an update do one by one: each packs and unpacks in its order, a group is under way when
/// all of it is packed and has free slots, a bucket has travelled when it is under way on all its ranks.
class Simulation {
 public:
  Simulation(const Plan& plan, const std::vector<bool>& direct, Random& random) : random_(random) {
    for (std::int64_t r = 0; r < plan.topology.ranks(); ++r) {
      RankPlan rank_plan = buckets_of(plan, r);
      Schedule schedule(plan, rank_plan, random.one_in(2), {}, direct);
      ranks_.push_back({rank_plan, schedule, std::vector<Bucket>(rank_plan.buckets.size()),
                        std::vector<std::int64_t>(static_cast<std::size_t>(plan.limits.buffers), -1)});
    }
  }

  /// Takes steps of random ranks until nobody can take one.
  void run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (Rank& rank : ranks_) {
        // Some take many steps before others take one.
        for (auto steps = random_.between(1, 8); steps > 0 && step(rank); --steps) moved = true;
      }
      moved = travel() || moved;
    }
  }

  void expect_done() const {
    for (const Rank& rank : ranks_) {
      for (std::size_t k = 0; k < rank.buckets.size(); ++k) {
        if (!rank.schedule.staged(k)) continue;
        EXPECT_TRUE(rank.buckets[k].travelled);
        EXPECT_EQ(rank.buckets[k].unpacked, rank.rank_plan.buckets[k].destination);
      }
    }
  }

 private:
  struct Bucket {
    bool packed = false;
    bool under_way = false;
    bool travelled = false;
    bool unpacked = false;
  };
  struct Rank {
    RankPlan rank_plan;
    Schedule schedule;
    std::vector<Bucket> buckets;        ///< of the rank plan
    std::vector<std::int64_t> content;  ///< of the slots: a bucket of the plan
    std::size_t batch = 0;              ///< the first that is not under way
  };

  static bool slot_free(const Rank& rank, std::size_t k) {
    const std::size_t before = rank.schedule.slots().before(k);
    if (before == kNone) return true;
    return rank.rank_plan.buckets[before].destination ? rank.buckets[before].unpacked
                                                      : rank.buckets[before].travelled;
  }

  static bool has_travelled(const Rank& rank, Schedule::Batch batch) {
    for (std::size_t k = batch.first; k < batch.last; ++k) {
      if (rank.schedule.staged(k) && !rank.buckets[k].travelled) return false;
    }
    return true;
  }

  /// The first bucket of a role that is not done there.
  template <typename Role, typename Done>
  static std::size_t first(const Rank& rank, Role RankBucket::*role, Done Bucket::*done) {
    std::size_t k = 0;
    while (k < rank.buckets.size() &&
           (!(rank.rank_plan.buckets[k].*role) || !rank.schedule.staged(k) || rank.buckets[k].*done)) {
      ++k;
    }
    return k;
  }

  static bool pack(Rank& rank) {
    const std::size_t k = first(rank, &RankBucket::root, &Bucket::packed);
    if (k == rank.buckets.size() || !slot_free(rank, k)) return false;
    rank.buckets[k].packed = true;
    rank.content[rank.schedule.slots().slot(k)] = rank.rank_plan.buckets[k].bucket;
    return true;
  }

  static bool unpack(Rank& rank) {
    const std::size_t k = first(rank, &RankBucket::destination, &Bucket::unpacked);
    if (k == rank.buckets.size() || !rank.buckets[k].travelled) return false;
    rank.buckets[k].unpacked = true;
    EXPECT_EQ(rank.content[rank.schedule.slots().slot(k)], rank.rank_plan.buckets[k].bucket);
    return true;
  }

  static bool start_group(Rank& rank) {
    const std::span<const Schedule::Batch> batches = rank.schedule.batches();
    if (rank.batch == batches.size()) return false;
    if (rank.batch > 0 && !has_travelled(rank, batches[rank.batch - 1])) return false;
    const Schedule::Batch batch = batches[rank.batch];
    for (std::size_t k = batch.first; k < batch.last; ++k) {
      if (!rank.schedule.staged(k)) continue;
      if (rank.rank_plan.buckets[k].root ? !rank.buckets[k].packed : !slot_free(rank, k)) return false;
    }
    for (std::size_t k = batch.first; k < batch.last; ++k) rank.buckets[k].under_way = true;
    ++rank.batch;
    return true;
  }

  bool step(Rank& rank) {
    switch (random_.between(0, 2)) {
      case 0:
        return pack(rank) || unpack(rank) || start_group(rank);
      case 1:
        return start_group(rank) || pack(rank) || unpack(rank);
      default:
        return unpack(rank) || start_group(rank) || pack(rank);
    }
  }

  /// What is under way everywhere arrives: the root's slot has held it until now.
  bool travel() {
    std::map<std::uint32_t, std::vector<std::pair<Rank*, std::size_t>>> under_way;
    std::set<std::uint32_t> missing;
    for (Rank& rank : ranks_) {
      for (std::size_t k = 0; k < rank.buckets.size(); ++k) {
        if (!rank.schedule.staged(k) || rank.buckets[k].travelled) continue;
        const std::uint32_t bucket = rank.rank_plan.buckets[k].bucket;
        if (rank.buckets[k].under_way) under_way[bucket].emplace_back(&rank, k);
        if (!rank.buckets[k].under_way) missing.insert(bucket);
      }
    }
    bool moved = false;
    for (const auto& [bucket, places] : under_way) {
      if (missing.contains(bucket)) continue;
      for (const auto& [rank, k] : places) {
        std::int64_t& content = rank->content[rank->schedule.slots().slot(k)];
        if (rank->rank_plan.buckets[k].root) {
          EXPECT_EQ(content, bucket);
        }
        content = bucket;
        rank->buckets[k].travelled = moved = true;
      }
    }
    return moved;
  }

  Random& random_;
  std::vector<Rank> ranks_;
};

TEST(StagingSlots, AreTakenInTurn) {
  const StagingSlots slots({true, false, true, true, false, false, true, true}, 3);
  const std::vector<std::size_t> expected{0, kNone, 1, 2, kNone, kNone, 0, 1};
  const std::vector<std::size_t> before{kNone, kNone, kNone, kNone, kNone, kNone, 0, 2};
  for (std::size_t k = 0; k < expected.size(); ++k) {
    EXPECT_EQ(slots.slot(k), expected[k]) << k;
    EXPECT_EQ(slots.before(k), before[k]) << k;
  }
}

TEST(Schedule, IsWhatARingAndThePlansGroupsSay) {
  Random random(1);
  std::size_t local = 0;
  std::size_t largest_group = 0;
  for (int round = 0; round < 400; ++round) {
    SCOPED_TRACE(round);
    const Plan plan = random_plan(random);
    const std::vector<bool> direct = random_direct(plan, random);
    for (std::int64_t rank = 0; rank < plan.topology.ranks(); ++rank) {
      const RankPlan rank_plan = buckets_of(plan, rank);
      for (const bool resident : {false, true}) {
        expect_sound(plan, rank_plan, rank, resident);
        expect_sound(plan, rank_plan, rank, resident, direct);
        const Schedule schedule(plan, rank_plan, resident);
        for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k) local += schedule.local(k) ? 1 : 0;
        for (const auto [first, last] : schedule.batches())
          largest_group = std::max(largest_group, last - first);
      }
    }
    if (HasFailure()) return;
  }
  // The cases are not all dull.
  EXPECT_GT(local, 100u);
  EXPECT_GT(largest_group, 2u);
}

TEST(Schedule, IsSoundForSharesOfModels) {
  const auto family = plan_cases::small_moe().family();
  for (const bool colocate : {false, true}) {
    for (const char* engine : {"tp=1", "tp=2,ep=2", "tp=4,ep=2,replicas=2", "tp=2,pp=2"}) {
      for (const std::int64_t buffers : {1, 2, 3, 8}) {
        SCOPED_TRACE(fmt::format("colocate {} {} buffers {}", colocate, engine, buffers));
        Limits limits = plan_cases::capped(64 << 10);
        limits.buffers = buffers;
        const Plan plan = make_plan(*family, plan_cases::topology_of(2, engine, colocate), limits);
        for (std::int64_t rank = 0; rank < plan.topology.ranks(); ++rank) {
          const RankPlan rank_plan = make_rank_plan(plan, *family, rank);
          for (const bool resident : {false, true}) expect_sound(plan, rank_plan, rank, resident);
        }
      }
    }
  }
}

TEST(Schedule, EverythingArrivesWhoeverIsSlow) {
  Random random(2);
  for (int round = 0; round < 400; ++round) {
    SCOPED_TRACE(round);
    const Plan plan = random_plan(random);
    Simulation simulation(plan, random_direct(plan, random), random);
    simulation.run();
    simulation.expect_done();
    if (HasFailure()) return;
  }
}

}  // namespace

}  // namespace weightcast
