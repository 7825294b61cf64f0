// The balancer of experts: vectors of the published one, and the same steps written a second time with the
// index arrays that the published one has.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/expert_balance.hpp"

namespace weightcast {

namespace {

using Loads = std::vector<float>;
using Indices = std::vector<int>;

struct Packing {
  Indices pack;
  Indices place;  ///< in the pack
};

Packing naive_packing(const Loads& loads, int packs) {
  const int count = static_cast<int>(loads.size());
  Packing result{Indices(loads.size()), Indices(loads.size())};
  if (count == packs) {
    std::iota(result.pack.begin(), result.pack.end(), 0);
    return result;
  }
  Loads sums(packs, 0.0F);
  Indices items(packs, 0);
  std::vector<bool> taken(loads.size());
  for (int turn = 0; turn < count; ++turn) {
    int thing = -1;
    for (int i = 0; i < count; ++i) {
      if (!taken[i] && (thing < 0 || loads[i] > loads[thing])) thing = i;
    }
    int pack = -1;
    for (int i = 0; i < packs; ++i) {
      if (items[i] < count / packs && (pack < 0 || sums[i] < sums[pack])) pack = i;
    }
    taken[thing] = true;
    result.pack[thing] = pack;
    result.place[thing] = items[pack]++;
    sums[pack] += loads[thing];
  }
  return result;
}

Indices inverse(const Indices& indices) {
  Indices result(indices.size());
  for (int i = 0; i < static_cast<int>(indices.size()); ++i) result[indices[i]] = i;
  return result;
}

std::vector<std::int64_t> naive_balance(const Loads& loads, BalanceShape shape) {
  if (shape.groups % shape.nodes != 0) shape.groups = shape.nodes = 1;
  const int experts = static_cast<int>(loads.size());
  const int groups = static_cast<int>(shape.groups);
  const int nodes = static_cast<int>(shape.nodes);
  const int size = experts / groups;
  Loads of_groups(groups, 0.0F);
  for (int i = 0; i < experts; ++i) of_groups[i / size] += loads[i];
  const Packing on_nodes = naive_packing(of_groups, nodes);
  Indices moved(experts);  // expert → its place when the nodes' experts stand one behind the other
  for (int i = 0; i < experts; ++i) {
    const int group = i / size;
    moved[i] = (on_nodes.pack[group] * (groups / nodes) + on_nodes.place[group]) * size + i % size;
  }
  const Indices expert_at = inverse(moved);
  const int of_node = experts / nodes;
  const int slots = static_cast<int>(shape.slots) / nodes;
  const int ranks = static_cast<int>(shape.ranks) / nodes;
  std::vector<std::int64_t> result;
  for (int node = 0; node < nodes; ++node) {
    Loads here(of_node);
    for (int i = 0; i < of_node; ++i) here[i] = loads[expert_at[node * of_node + i]];
    Indices copies(slots);
    Indices counts(of_node, 1);
    for (int slot = 0; slot < slots; ++slot) {
      if (slot < of_node) {
        copies[slot] = slot;
        continue;
      }
      int busiest = 0;
      for (int i = 1; i < of_node; ++i) {
        if (here[i] / static_cast<float>(counts[i]) > here[busiest] / static_cast<float>(counts[busiest]))
          busiest = i;
      }
      copies[slot] = busiest;
      ++counts[busiest];
    }
    Loads shares(slots);
    for (int slot = 0; slot < slots; ++slot)
      shares[slot] = here[copies[slot]] / static_cast<float>(counts[copies[slot]]);
    const Packing on_ranks = naive_packing(shares, ranks);
    Indices physical(slots);
    for (int slot = 0; slot < slots; ++slot)
      physical[slot] = on_ranks.pack[slot] * (slots / ranks) + on_ranks.place[slot];
    for (const int copy : inverse(physical)) result.push_back(expert_at[node * of_node + copies[copy]]);
  }
  return result;
}

nlohmann::json vectors() {
  std::ifstream file(fmt::format("{}/golden/eplb.json", WEIGHTCAST_TEST_DATA));
  EXPECT_TRUE(file.good());
  return nlohmann::json::parse(file);
}

TEST(ExpertBalance, GivesThePublishedMaps) {
  const nlohmann::json golden = vectors();
  const ExpertLoads loads = parse_expert_loads(golden["load"].dump(), "loads");
  for (const char* policy : {"hierarchical", "global_"}) {
    SCOPED_TRACE(policy);
    const nlohmann::json& args = golden[policy]["args"];
    const BalanceShape shape{args["num_replicas"], args["num_groups"], args["num_nodes"], args["num_gpus"]};
    EXPECT_EQ(shape.hierarchical(), std::string(policy) == "hierarchical");
    const ExpertMap map = balance_experts(loads, shape);
    const auto expected = golden[policy]["phy2log"].get<std::vector<std::vector<std::int64_t>>>();
    EXPECT_EQ(map.placement.experts_of_slots, expected);
    EXPECT_EQ(map.slots, shape.slots);
    EXPECT_EQ(map.ep, shape.ranks);
    for (std::size_t layer = 0; layer < expected.size(); ++layer) {
      const auto row = loads.layer(static_cast<std::int64_t>(layer));
      EXPECT_EQ(naive_balance({row.begin(), row.end()}, shape), expected[layer]);
    }
  }
}

TEST(ExpertBalance, EqualsTheSecondWriting) {
  std::mt19937 random(20);  // NOLINT: the same numbers in every run
  const auto between = [&](int least, int most) {
    return std::uniform_int_distribution<int>(least, most)(random);
  };
  int hierarchical = 0;
  int spared = 0;
  for (int round = 0; round < 1000; ++round) {
    const int nodes = between(1, 4);
    const int groups = between(1, 3) * (between(0, 3) == 0 ? 1 : nodes);
    const int ranks = nodes * between(1, 4);
    const int experts = groups * between(1, 6);
    const int slots = ranks * ((experts + ranks - 1) / ranks + between(0, 3));
    const BalanceShape shape{slots, groups, nodes, ranks};
    // Few values make many equal ones, as layers without load do; fractions round.
    const int kind = between(0, 3);
    ExpertLoads loads{"loads", 1, experts, {}};
    for (int expert = 0; expert < experts; ++expert) {
      loads.values.push_back(kind == 0   ? 0.0F
                             : kind == 1 ? static_cast<float>(between(0, 3))
                             : kind == 2 ? static_cast<float>(between(0, 1'000'000))
                                         : std::uniform_real_distribution<float>(0, 10)(random));
    }
    const ExpertMap map = balance_experts(loads, shape);
    ASSERT_EQ(map.placement.experts_of_slots.front(), naive_balance(loads.values, shape))
        << "round " << round << ": " << experts << " experts, " << slots << " slots, " << groups
        << " groups, " << nodes << " nodes, " << ranks << " ranks";
    // It is a map: each expert has a slot.
    ASSERT_NO_THROW(parse_expert_map(expert_map_text(map), "map"));
    hierarchical += shape.hierarchical() && nodes > 1 ? 1 : 0;
    spared += slots > experts ? 1 : 0;
  }
  EXPECT_GT(hierarchical, 300);
  EXPECT_GT(spared, 300);
}

TEST(ExpertBalance, ImbalanceIsTheBusiestRankByTheMean) {
  // Expert 0 has two copies of 4 each; ranks have 4 + 2, 4 + 0.
  const ExpertLoads loads{"loads", 2, 3, {8, 2, 0, 0, 0, 0}};
  const ExpertMap map{"", 3, 4, 2, {0, {{0, 1, 0, 2}, {0, 1, 0, 2}}}};
  const std::vector<double> found = imbalances(loads, map);
  EXPECT_DOUBLE_EQ(found[0], 6.0 / 5.0);
  EXPECT_DOUBLE_EQ(found[1], 1.0);  // nothing to do
}

std::string refusal(const std::string& text) {
  try {
    parse_expert_loads(text, "loads.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ExpertBalance, RefusesWrongLoads) {
  const std::string remedy = "; write the loads anew, as [layers][experts]";
  EXPECT_EQ(refusal("{}"), "loads.json: no JSON list; it must begin with '['");
  EXPECT_EQ(refusal("[]"), "loads.json: has no layers" + remedy);
  EXPECT_EQ(refusal("[1, 2]"), "loads.json: layer 0: is no list of experts' loads" + remedy);
  EXPECT_EQ(refusal("[[1], []]"), "loads.json: layer 1: is no list of experts' loads" + remedy);
  EXPECT_EQ(refusal("[[1, 2], [1, 2, 3]]"),
            "loads.json: layer 1: has loads of 3 experts, but layer 0 of 2" + remedy);
  EXPECT_EQ(refusal("[[1, 2], [1, -0.5]]"),
            "loads.json: layer 1, expert 1: -0.5 is no load, a number from 0 on" + remedy);
  EXPECT_EQ(refusal("[[NaN, 2]]"),
            "loads.json: layer 0, expert 0: \"NaN\" is no load, a number from 0 on" + remedy);
  EXPECT_EQ(refusal("[[1, Infinity]]"),
            "loads.json: layer 0, expert 1: \"Infinity\" is no load, a number from 0 on" + remedy);
  EXPECT_EQ(refusal("[[[1], 2]]"),
            "loads.json: layer 0, expert 0: [1] is no load, a number from 0 on" + remedy);
  EXPECT_EQ(refusal("[[1e38, 1e38]]"), "loads.json: layer 0: its loads add up to more than 1e38" + remedy);
  EXPECT_NE(refusal("[[1e999]]").find("loads.json: not JSON at line 1"), std::string::npos);
}

TEST(ExpertBalance, RefusesSizesThatDoNotDivide) {
  const ExpertLoads loads{"loads.json", 1, 12, Loads(12, 1.0F)};
  const auto refused = [&](const BalanceShape& shape) -> std::string {
    try {
      balance_experts(loads, shape);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(refused({16, 4, 2, 5}),
            "--ranks: ranks=5 does not divide the slots of a layer (16); choose a divisor");
  EXPECT_EQ(refused({16, 8, 2, 8}),
            "--groups: groups=8 does not divide the experts of loads.json (12); choose a divisor");
  EXPECT_EQ(refused({15, 2, 2, 5}), "--nodes: nodes=2 does not divide the ranks (5); choose a divisor");
  EXPECT_EQ(refused({8, 4, 2, 8}),
            "--slots: 8 are too few for the 12 experts of loads.json; give at least one for each");
  EXPECT_EQ(refused({1 << 25, 4, 2, 8}),
            "--slots: 33554432 in each of 1 layers are more than the 16777216 that a map may have");
  // Also where no node gets whole groups; groups do not count there.
  EXPECT_EQ(refused({15, 5, 2, 5}), "--nodes: nodes=2 does not divide the ranks (5); choose a divisor");
  EXPECT_EQ(refused({16, 5, 2, 8}), "no error");
}

}  // namespace

}  // namespace weightcast
