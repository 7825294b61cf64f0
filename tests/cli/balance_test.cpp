// `weightcast balance`: the map that it writes, what it says of it, and what it refuses.

#include <filesystem>
#include <iterator>
#include <sstream>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

using nlohmann::json;

class BalanceTest : public CliTest {
 protected:
  void SetUp() override {
    golden_ = json::parse(get_file(std::string(kData) + "/golden/eplb.json"));
    put_file(loads_, golden_["load"].dump());
  }

  Words balance(const Words& more) const {
    return Words{"balance", "--load", loads_, "--slots", "16", "--ranks", "8", "--output", map_} + more;
  }

  std::string loads_ = dir_ / "loads.json";
  std::string map_ = dir_ / "map.json";
  json golden_;
};

TEST_F(BalanceTest, WritesTheMapAndSaysWhatItIsWorth) {
  const Outcome outcome = run_plain(balance({"--groups", "4", "--nodes", "2"}));
  ASSERT_TRUE(done(outcome));
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(too_wide(outcome.out), "");
  // The figures were computed apart from the program, from the loads and the two maps.
  EXPECT_TRUE(has(outcome.out, {"2 layers of 12 experts in 16 slots of 8 ranks; epoch 1",
                                "4 groups on 2 nodes", "28 of 32 slots get another expert"}));
  std::istringstream lines(outcome.out);
  std::vector<Words> rows;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    rows.emplace_back(std::istream_iterator<std::string>(words), std::istream_iterator<std::string>());
  }
  ASSERT_EQ(rows.size(), 6U);
  EXPECT_EQ(rows[3], (Words{"before", "2.381", "1", "2.232"}));
  EXPECT_EQ(rows[4], (Words{"after", "1.242", "1", "1.225"}));
  const json map = json::parse(get_file(map_));
  EXPECT_EQ(map["experts_of_slots"], golden_["hierarchical"]["phy2log"]);
  EXPECT_EQ(map["epoch"], 1);
  EXPECT_EQ(map["ep"], 8);
}

TEST_F(BalanceTest, TakesAllAsOneGroupWhereNodesDoNotDivideGroups) {
  const Outcome outcome = run_plain(balance({"--groups", "3", "--nodes", "2"}));
  ASSERT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"all experts as one group: 2 nodes do not divide 3 groups"}));
  EXPECT_EQ(too_wide(outcome.out), "");
  EXPECT_EQ(json::parse(get_file(map_))["experts_of_slots"], golden_["global_"]["phy2log"]);
}

TEST_F(BalanceTest, SaysThatTheMapBeforeIsTheBetter) {
  // By falling load: 4 and 2 to ranks 0 and 1, 2 to each in turn, and 1 where room is left: 7 and 5 of 12. As
  // they stand it is 6 and 6.
  put_file(loads_, "[[1, 1, 4, 2, 2, 2]]");
  const Outcome outcome =
      run_plain({"balance", "--load", loads_, "--slots", "6", "--ranks", "2", "--output", map_});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(
      has(outcome.err, {"the busiest rank has 1.167 times the mean with this map, and 1.000 with the one "
                        "before; that one is the better"}));
}

TEST_F(BalanceTest, CountsOnFromThePreviousMapAndReplacesIt) {
  ASSERT_TRUE(done(run_plain(balance({}))));
  const json first = json::parse(get_file(map_));
  const Outcome again = run_plain(balance({"--previous", map_}));
  ASSERT_TRUE(done(again));
  EXPECT_TRUE(has(again.out, {"epoch 2", "0 of 32 slots get another expert"}));
  json second = json::parse(get_file(map_));
  EXPECT_EQ(second["epoch"], 2);
  second["epoch"] = 1;
  EXPECT_EQ(second, first);
  const std::string kept = get_file(map_);
  EXPECT_TRUE(refused(run_plain({"balance", "--load", loads_, "--slots", "16", "--ranks", "4", "--output",
                                 map_, "--previous", map_}),
                      64, {"--previous", "16 slots and 8 ranks", "leave it out"}));
  EXPECT_EQ(get_file(map_), kept);
}

TEST_F(BalanceTest, WritesTheMapAloneToStdout) {
  const Outcome outcome =
      run_plain({"balance", "--load", loads_, "--slots", "16", "--ranks", "8", "--output", "-"});
  ASSERT_TRUE(done(outcome));
  EXPECT_EQ(json::parse(outcome.out)["slots"], 16);
  EXPECT_TRUE(has(outcome.err, {"before", "after"}));
}

TEST_F(BalanceTest, RefusesInOneLine) {
  EXPECT_TRUE(refused(run_plain({"balance"}), 64, {"--load FILE is needed"}));
  EXPECT_TRUE(refused(run_plain({"balance", "--load", loads_}), 64, {"--slots S is needed"}));
  EXPECT_TRUE(
      refused(run_plain({"balance", "--load", loads_, "--slots", "16"}), 64, {"--ranks R is needed"}));
  EXPECT_TRUE(refused(run_plain({"balance", "--load", loads_, "--slots", "16", "--ranks", "8"}), 64,
                      {"--output MAP is needed"}));
  EXPECT_TRUE(refused(run_plain(balance({"--nodes", "0"})), 64, {"--nodes"}));
  for (const char* nodes : {"3", "16", "2000000000"}) {
    EXPECT_TRUE(refused(run_plain(balance({"--nodes", nodes})), 64,
                        {std::string("--nodes: nodes=") + nodes + " does not divide the ranks"}));
  }
  EXPECT_TRUE(refused(run_plain(balance({"--groups", "8", "--nodes", "2"})), 64,
                      {"--groups: groups=8 does not divide the experts", loads_, "(12)"}));
  EXPECT_TRUE(refused(run_plain(balance({"--previous", loads_})), 65, {loads_, "no JSON object"}));
  EXPECT_FALSE(std::filesystem::exists(map_));
  put_file(loads_, "[[1, 2], [3, -1]]");
  EXPECT_TRUE(refused(run_plain(balance({})), 65, {loads_, "layer 1, expert 1: -1 is no load"}));
  std::filesystem::remove(loads_);
  EXPECT_TRUE(refused(run_plain(balance({})), 74, {loads_}));
  // What is no map or report stays.
  put_file(loads_, golden_["load"].dump());
  put_file(map_, "mine");
  EXPECT_TRUE(refused(run_plain(balance({})), 64, {map_, "no report"}));
  EXPECT_EQ(get_file(map_), "mine");
  // Nor does a map replace a report, or a report a map.
  const Words plan{"plan", "--source", trained(0), "--inference", "tp=2"};
  const Words option{"--json", map_};
  std::filesystem::remove(map_);
  EXPECT_TRUE(done(run_plain(plan + option)));
  const std::string report = get_file(map_);
  EXPECT_TRUE(refused(run_plain(balance({})), 64, {"--output " + map_, "is a report"}));
  EXPECT_EQ(get_file(map_), report);
  std::filesystem::remove(map_);
  EXPECT_TRUE(done(run_plain(balance({}))));
  const std::string map = get_file(map_);
  for (const char* name : {"--json", "--picture"}) {
    EXPECT_TRUE(refused(run_plain(plan + Words{name, map_}), 64, {map_, "is an expert map"}));
    EXPECT_EQ(get_file(map_), map);
  }
}

}  // namespace
}  // namespace weightcast::test_support
