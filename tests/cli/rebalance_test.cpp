// `weightcast rebalance`: shard files whose experts lie afterwards as the new map says, and what it refuses.

#include <filesystem>
#include <functional>
#include <utility>

#include "cli/cli.hpp"
#include "storage/attributes.hpp"

namespace weightcast::test_support {
namespace {

using nlohmann::json;
using Contents = std::map<std::string, std::string>;
using Row = std::vector<int>;

/// The real model has 3 layers of 8 experts; on two ranks each has 4 of 8 slots.
json map_json(int epoch, const std::vector<Row>& rows, int ep = 2) {
  return {{"expert_map", 1},
          {"epoch", epoch},
          {"layers", rows.size()},
          {"experts", 8},
          {"slots", rows.at(0).size()},
          {"ep", ep},
          {"experts_of_slots", rows}};
}

const std::vector<Row>& identity() {
  static const std::vector<Row> rows(3, {0, 1, 2, 3, 4, 5, 6, 7});
  return rows;
}
const std::vector<Row>& shuffled() {
  static const std::vector<Row> rows{
      {5, 0, 2, 7, 1, 3, 4, 6}, {0, 1, 2, 3, 7, 6, 5, 4}, {4, 5, 6, 7, 0, 1, 2, 3}};
  return rows;
}

class RebalanceTest : public CliTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(done(run_job(3, sync_words(trained(1)))));
    put_file(a_, map_json(1, shuffled()).dump());
    put_file(back_, map_json(2, identity()).dump());
  }

  Words words(const std::string& from, const std::string& to, const Words& more = {}) const {
    return Words{"rebalance", "--from", from, "--to", to, "--model", trained(1), "--sink", "hdf5:" + sink_} +
           more;
  }

  /// What the shards must hold under `rows`, given what they hold where slot e has expert e.
  static Contents placed(const Contents& plain, const std::vector<Row>& rows) {
    Contents result = plain;
    for (auto& [key, value] : result) {
      const std::size_t at = key.find(".layers.");
      if (key.find(".experts.") == std::string::npos) continue;
      const auto layer = static_cast<std::size_t>(key.at(at + 8) - '0');
      const std::size_t header = value.find(']') + 1;
      const std::size_t slab = (value.size() - header) / 4;
      const auto rank = static_cast<std::size_t>(key.at(5) - '0');
      const std::string name = key.substr(6);
      for (std::size_t slot = 0; slot < 4; ++slot) {
        const auto expert = static_cast<std::size_t>(rows.at(layer).at(rank * 4 + slot));
        const std::string& from = plain.at("rank-" + std::to_string(expert / 4) + name);
        value.replace(header + slot * slab, slab, from, header + expert % 4 * slab, slab);
      }
    }
    return result;
  }

  std::string a_ = dir_ / "a.json";
  std::string back_ = dir_ / "back.json";
};

TEST_F(RebalanceTest, ShardsHoldWhatTheMapSays) {
  const Contents plain = shard_contents(sink_);
  const std::string report = dir_ / "report.json";
  const Outcome outcome = run_job(2, words("contiguous", a_, {"--json", report}));
  ASSERT_TRUE(done(outcome));
  EXPECT_EQ(too_wide(outcome.out.substr(0, outcome.out.find("# 2 shards"))), "");
  EXPECT_TRUE(has(outcome.out, {"epoch 0 → 1: 19 of 24 slots get another expert", "2 shards of version"}));
  EXPECT_TRUE(shard_contents(sink_) == placed(plain, shuffled()));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(1), "--expert-map", a_})));
  const json said = read_json(report);
  EXPECT_EQ(said["status"], "done");
  EXPECT_EQ(said["slots"]["local"].get<int>() + said["slots"]["same_host"].get<int>(), 19);
  EXPECT_EQ(said["bytes"]["moved"], said["bytes"]["least"]);
  EXPECT_GT(said["bytes"]["moved"], 0);
  const auto attributes = read_attributes(sink_ + "/rank-1.h5");
  EXPECT_EQ(std::get<std::int64_t>(attributes.at("expert_epoch")), 1);

  // And back, in little staging; the report takes the place of the first.
  ASSERT_TRUE(
      done(run_job(2, words(a_, back_, {"--bucket-size", "64KiB", "--buffers", "1", "--json", report}))));
  EXPECT_TRUE(shard_contents(sink_) == plain);
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(1), "--expert-map", back_})));
}

TEST_F(RebalanceTest, ShardsAreOfEitherFormatAndOfAnyLayout) {
  const std::string sink = "safetensors:" + (dir_ / "other");
  ASSERT_TRUE(done(run_job(3, {"sync", "--source", trained(1), "--inference", "tp=2,ep=1", "--moe-layout",
                               "trtllm", "--sink", sink})));
  const Contents plain = shard_contents(dir_ / "other");
  put_file(a_, map_json(1, shuffled(), 1).dump());
  put_file(back_, map_json(2, identity(), 1).dump());
  const auto move = [&](const std::string& from, const std::string& to) {
    return run_job(2, {"rebalance", "--from", from, "--to", to, "--model", trained(1), "--sink", sink});
  };
  const Outcome there = move("trivial", a_);
  ASSERT_TRUE(done(there));
  EXPECT_TRUE(has(there.out, {"0 B between ranks; at least 0 B have to"}));
  EXPECT_FALSE(shard_contents(dir_ / "other") == plain);
  ASSERT_TRUE(done(move(a_, back_)));
  EXPECT_TRUE(shard_contents(dir_ / "other") == plain);
}

TEST_F(RebalanceTest, TimesMovesOfAnyValues) {
  const Outcome outcome = run_job(2, {"rebalance", "--from", "contiguous", "--to", a_, "--model", trained(1),
                                      "--inference", "tp=2,ep=2", "--iterations", "2", "--transport", "mpi"});
  ASSERT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"median of 2", "the same messages alone", "÷ plain"}));
}

TEST_F(RebalanceTest, AFailureLeavesTheShards) {
  const std::string before = get_file(sink_ + "/rank-0.h5");
  std::string broken = get_file(sink_ + "/rank-1.h5");
  broken.resize(broken.size() / 2);
  put_file(sink_ + "/rank-1.h5", broken);
  const Outcome outcome = run_job(2, words("contiguous", a_));
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_EQ(error_lines(outcome.err).size(), 1U) << outcome.err;
  EXPECT_EQ(get_file(sink_ + "/rank-0.h5"), before);
  EXPECT_EQ(get_file(sink_ + "/rank-1.h5"), broken);
}

TEST_F(RebalanceTest, RefusesInOneLine) {
  const std::string before = get_file(sink_ + "/rank-0.h5");
  const std::string other = dir_ / "other.json";
  const auto write = [&](const std::function<void(json&)>& change) {
    json map = map_json(1, shuffled());
    change(map);
    put_file(other, map.dump());
    return other;
  };
  const auto gives = [&](const Words& line, int code, const Words& says, int ranks = 2) {
    EXPECT_TRUE(refused(run_job(ranks, line), code, says));
  };
  gives({"rebalance"}, 64, {"--from MAP is needed"});
  gives({"rebalance", "--from", a_}, 64, {"--to MAP is needed"});
  gives({"rebalance", "--from", a_, "--to", back_}, 64, {"--model CONFIG_JSON is needed"});
  gives(words(a_, dir_ / "none.json"), 74, {"none.json"});
  gives(words(dir_ / "none.json", a_), 74, {"none.json"});
  gives(words(a_, a_), 64, {"--to", "epoch 1", "count the epoch up"});
  gives(words(back_, a_), 64, {"does not follow epoch 2"});
  gives(words(a_, back_), 64, {"--from", "of epoch 1, but the experts of", "contiguous of epoch 0"});
  gives(words("contiguous", write([](json& m) { m["experts_of_slots"][1][0] = 1; })), 65,
        {"layer 1: none of its 8 slots holds expert 0"});
  gives(words("contiguous", write([](json& m) { m["experts_of_slots"][2].push_back(1); })), 65,
        {"layer 2: has 9 slots, but 'slots' is 8"});
  gives(words("contiguous", write([](json& m) { m["experts_of_slots"].erase(1); })), 65, {"has 2 layers"});
  gives(words("contiguous", write([](json& m) {
                m["experts_of_slots"].erase(1);
                m["layers"] = 2;
              })),
        65, {"has 2 layers, but the model has 3"});
  gives(words("contiguous", write([](json& m) { m["ep"] = 4; })), 64, {"4 ranks", "ep=2"});
  gives(words("contiguous", write([](json& m) {
                m["slots"] = 10;
                for (json& row : m["experts_of_slots"]) row.insert(row.end(), {0, 1});
              })),
        64, {"contiguous of epoch 0"});
  gives(words("round-robin", a_), 64, {"--from round-robin", "contiguous of epoch 0"});
  gives(words("contiguous", write([](json& m) { m["expert_map"] = 9; })), 65, {"other.json: 'expert_map'"});
  gives(words("contiguous", trained(1) + "/config.json"), 65, {"config.json"});
  gives(words("contiguous", a_), 64, {"--sink hdf5:", "is of 2 ranks, but the launcher started 3; start 2"},
        3);
  gives(words("contiguous", a_, {"--inference", "tp=4,ep=2"}), 64,
        {"--inference", "shard files say their layout"});
  gives(words("contiguous", a_, {"--iterations", "3"}), 64, {"--iterations", "--sink none"});
  gives(words("published", a_), 64, {"--from published", "live:DIR"});
  gives({"rebalance", "--from", "published", "--to", a_, "--model", trained(1), "--sink", "live:" + sink_,
         "--inference", "tp=2,ep=2"},
        74, {"engine"});
  gives({"rebalance", "--from", "contiguous", "--to", a_, "--model", trained(1), "--sink",
         "hdf5:" + sink_ + "/{version}"},
        64, {"{version}", "write that of one"});
  gives({"rebalance", "--from", "contiguous", "--to", a_, "--model", trained(1), "--sink",
         "safetensors:" + sink_},
        64, {"its shards are hdf5 files"});
  gives({"rebalance", "--from", "contiguous", "--to", a_, "--model", trained(1), "--sink",
         "hdf5:" + (dir_ / "no")},
        74, {"no such folder"});
  gives({"rebalance", "--from", "contiguous", "--to", a_, "--model", model_folder("tiny-qwen3"), "--sink",
         "hdf5:" + sink_},
        64, {"has no experts"});
  gives({"rebalance", "--from", "contiguous", "--to", a_, "--model", model_folder("tiny-qwen3-moe"), "--sink",
         "hdf5:" + sink_},
        65, {"of 8 experts, but layer 0 of the model has 16"});
  EXPECT_FALSE(std::filesystem::exists(dir_ / "no"));
  EXPECT_EQ(get_file(sink_ + "/rank-0.h5"), before);
}

TEST_F(RebalanceTest, RefusesShardsOfSeveralUpdates) {
  const std::string first = get_file(sink_ + "/rank-0.h5");
  ASSERT_TRUE(done(run_job(3, sync_words(trained(1)))));
  put_file(sink_ + "/rank-0.h5", first);
  EXPECT_TRUE(refused(run_job(2, words("contiguous", a_)), 65, {"mixed shards", "different updates"}));
}

}  // namespace
}  // namespace weightcast::test_support
