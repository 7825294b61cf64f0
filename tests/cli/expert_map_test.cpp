// --expert-map, --placement and --redundant-experts: what shards hold, and what is refused.

#include <cstddef>
#include <random>
#include <span>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

using nlohmann::json;
using Rows = std::vector<std::vector<std::int64_t>>;

class ExpertMapTest : public CliTest {
 protected:
  /// Experts in any order, and in as many more slots some of them again.
  static Rows shuffled(std::int64_t layers, std::int64_t experts, std::int64_t more) {
    std::mt19937_64 random(7);
    Rows rows;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      std::vector<std::int64_t>& row = rows.emplace_back();
      for (std::int64_t slot = 0; slot < experts + more; ++slot) {
        row.push_back(slot < experts
                          ? slot
                          : static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(experts)));
      }
      std::shuffle(row.begin(), row.end(), random);
    }
    return rows;
  }

  static json map_of(const Rows& rows, std::int64_t experts, std::int64_t ep, std::int64_t epoch = 3) {
    return {{"expert_map", 1},
            {"epoch", epoch},
            {"layers", rows.size()},
            {"experts", experts},
            {"slots", rows.front().size()},
            {"ep", ep},
            {"experts_of_slots", rows}};
  }

  std::string put_map(const json& map, const std::string& name = "map.json") const {
    const std::string path = dir_ / name;
    put_file(path, map.dump());
    return path;
  }

  Words verify(const std::string& source, const Words& more) const {
    return Words{"verify", sink_, "--source", source} + more;
  }
  Words plan(const Words& more) const {
    return Words{"plan", "--source", trained(0), "--inference", "tp=2,ep=2"} + more;
  }
};

std::string bytes_of(const CheckpointReader& reader, const Checkpoint& file, const std::string& name) {
  const StoredTensor& tensor = *file.find(name);
  std::string bytes(static_cast<std::size_t>(tensor.bytes()), '\0');
  reader.read(tensor, Box::whole(tensor.shape), std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

TEST_F(ExpertMapTest, EverySlotHoldsItsExpert) {
  const Rows rows = shuffled(3, 8, 4);
  const Words map{"--expert-map", put_map(map_of(rows, 8, 2))};
  ASSERT_TRUE(done(run_job(3, sync_words(trained(0)) + map + Words{"--json", dir_ / "report.json"})));
  EXPECT_EQ(read_json(dir_ / "report.json")["expert_epoch"], 3);
  const Checkpoint source = read_checkpoint(trained(0));
  const CheckpointReader weights(source);
  for (const std::size_t rank : {0, 1}) {
    const Checkpoint shard = read_checkpoint(sink_ + "/rank-" + std::to_string(rank) + ".h5");
    const CheckpointReader held(shard);
    for (std::size_t layer = 0; layer < rows.size(); ++layer) {
      const std::string experts = "model.layers." + std::to_string(layer) + ".mlp.experts.";
      std::string w13;
      std::string w2;
      for (std::size_t slot = rank * 6; slot < rank * 6 + 6; ++slot) {
        const std::string expert = experts + std::to_string(rows[layer][slot]) + ".";
        w13 += bytes_of(weights, source, expert + "gate_proj.weight");
        w13 += bytes_of(weights, source, expert + "up_proj.weight");
        w2 += bytes_of(weights, source, expert + "down_proj.weight");
      }
      EXPECT_EQ(shard.find(experts + "w13_weight")->shape[0], 6);
      EXPECT_TRUE(bytes_of(held, shard, experts + "w13_weight") == w13) << rank << " " << layer;
      EXPECT_TRUE(bytes_of(held, shard, experts + "w2_weight") == w2) << rank << " " << layer;
    }
  }
  EXPECT_TRUE(done(run_plain(verify(trained(0), map))));
  EXPECT_TRUE(refused(run_plain(verify(trained(1), map)), 66, {"differ"}));
  const Outcome inspected = run_plain({"inspect", sink_});
  EXPECT_TRUE(has(inspected.out, {"slots by map ", " of epoch 3"}));
}

TEST_F(ExpertMapTest, GoesWithEveryLayoutAndQuantiser) {
  const std::string source = dir_ / "model";
  ASSERT_TRUE(done(run_plain({"synth", "--model", model_folder("block-qwen3-moe"), "--output", source})));
  const json config = read_json(source + "/config.json");
  const std::int64_t experts = config["num_experts"];
  const Rows rows = shuffled(config["num_hidden_layers"], experts, 2);
  const Words map{"--expert-map", put_map(map_of(rows, experts, 2))};
  const std::vector<Words> cases{
      {"--engine", "vllm", "--inference", "attn_tp=1,attn_dp=2,ep=2"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "triton-kernels"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "cutlass", "--quantize", "nvfp4"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "trtllm", "--quantize", "mxfp4"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "trtllm-shuffled", "--quantize", "fp8-block"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "deepgemm", "--quantize", "fp8-block:ue8m0"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "deepgemm-mega", "--quantize", "mxfp4"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "cute-dsl", "--quantize", "nvfp4"},
      {"--inference", "tp=2,ep=2", "--moe-layout", "vllm-cpu"},
      {"--inference", "tp=2,ep=2", "--quantize", "fp8-channel", "--quantize-at", "destination"},
  };
  for (const Words& options : cases) {
    SCOPED_TRACE(options.back());
    EXPECT_TRUE(
        done(run_job(3, Words{"sync", "--source", source, "--sink", "hdf5:" + sink_} + options + map)));
    EXPECT_TRUE(done(run_plain(verify(source, map))));
  }
}

TEST_F(ExpertMapTest, FirstPlacements) {
  for (const Words& options :
       {Words{"--placement", "round-robin"}, Words{"--placement", "trivial", "--redundant-experts", "2"},
        Words{"--redundant-experts", "2"}}) {
    SCOPED_TRACE(options[1]);
    ASSERT_TRUE(done(run_job(3, sync_words(trained(0)) + options)));
    EXPECT_TRUE(done(run_plain(verify(trained(0), options))));
    EXPECT_TRUE(
        refused(run_plain(verify(trained(0), {})), 64, {"of epoch 0, not without a map", "--placement"}));
  }
  // Of both engines' words for what they do by default, and of a map that says so.
  ASSERT_TRUE(done(run_job(3, sync_words(trained(0)) + Words{"--placement", "trivial"})));
  Rows rows(3);
  for (auto& row : rows) row = {0, 1, 2, 3, 4, 5, 6, 7};
  EXPECT_TRUE(done(run_plain(verify(trained(0), {"--expert-map", put_map(map_of(rows, 8, 2, 0))}))));
  EXPECT_TRUE(refused(run_plain(verify(trained(0), {"--expert-map", put_map(map_of(rows, 8, 2, 4))})), 64,
                      {"without a map, not by map contiguous of epoch 4"}));
}

TEST_F(ExpertMapTest, LayersWithoutExpertsDraftLayersAndExpertsInOneTensor) {
  struct Model {
    std::string name;
    std::int64_t layers;  ///< that the map has rows for
    std::int64_t experts;
    Words more;
  };
  // Of the first model layer 0 has no experts, and layer 3 is a draft's.
  const Words drafts{"--mtp", "include"};
  for (const Model& model :
       {Model{"deepseek-v3", 2, 8, drafts}, Model{"deepseek-v3", 4, 8, drafts}, Model{"gpt-oss", 2, 6, {}}}) {
    SCOPED_TRACE(model.name);
    const std::string source = dir_ / model.name;
    const std::string config = std::string(kData) + "/tiny/" + model.name + "/config.json";
    ASSERT_TRUE(done(run_plain(Words{"synth", "--model", config, "--output", source} + model.more)));
    const Rows rows = shuffled(model.layers, model.experts, 2);
    const Words map = model.more + Words{"--expert-map", put_map(map_of(rows, model.experts, 2))};
    ASSERT_TRUE(done(run_job(3, sync_words(source) + map)));
    EXPECT_TRUE(done(run_plain(verify(source, map))));
  }
  // Three rows are those of the model without its draft layer, or of all layers with experts.
  const Words either = drafts + Words{"--expert-map", put_map(map_of(shuffled(3, 8, 2), 8, 2))};
  EXPECT_TRUE(refused(run_plain(sync_words(dir_ / "deepseek-v3") + either + Words{"--dry-run"}), 65,
                      {"map.json: has 3 layers, which may be those"}));
}

TEST_F(ExpertMapTest, ShardsOfALaterMapAreNotReplaced) {
  const Rows rows = shuffled(3, 8, 2);
  const Words later{"--expert-map", put_map(map_of(rows, 8, 2, 5), "later.json")};
  const Words earlier{"--expert-map", put_map(map_of(rows, 8, 2, 4), "earlier.json")};
  ASSERT_TRUE(done(run_job(3, sync_words(trained(0)) + earlier)));
  ASSERT_TRUE(done(run_job(3, sync_words(trained(1)) + later)));
  const auto before = shard_contents(sink_);
  const Words says{"rank-", "placed by a map of epoch 5, and this update was planned for epoch ",
                   "--expert-map"};
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + earlier), 64, says));
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0))), 64, says));
  EXPECT_TRUE(refused(run_plain(sync_words(trained(0)) + Words{"--dry-run"}), 64, says));
  EXPECT_TRUE(shard_contents(sink_) == before);
  EXPECT_TRUE(done(run_plain(verify(trained(1), later))));
}

TEST_F(ExpertMapTest, PlansOfOtherMapsAreOthers) {
  const Rows rows = shuffled(3, 8, 0);
  const auto hash_of = [&](const Words& more) {
    const std::string report = dir_ / "plan.json";
    EXPECT_TRUE(done(run_plain(plan(more + Words{"--json", report}))));
    const json plan = read_json(report);
    return std::pair(plan["hash"].get<std::string>(), plan["inference"]["expert_epoch"].get<int>());
  };
  const auto none = hash_of({});
  const auto three = hash_of({"--expert-map", put_map(map_of(rows, 8, 2, 3))});
  const auto four = hash_of({"--expert-map", put_map(map_of(rows, 8, 2, 4))});
  EXPECT_EQ(none.second, 0);
  EXPECT_EQ(three.second, 3);
  EXPECT_EQ(four.second, 4);
  EXPECT_NE(none.first, three.first);
  EXPECT_NE(three.first, four.first);
}

TEST_F(ExpertMapTest, RefusesWhatDoesNotFit) {
  const Rows rows = shuffled(3, 8, 2);
  const auto with = [&](const json& map) {
    return run_plain(plan({"--expert-map", put_map(map, "bad.json")}));
  };
  EXPECT_TRUE(done(with(map_of(rows, 8, 2))));
  EXPECT_TRUE(
      refused(with(map_of({rows[0], rows[1]}, 8, 2)), 65, {"bad.json: has 2 layers", "the model has 3"}));
  EXPECT_TRUE(refused(with(map_of(shuffled(3, 4, 0), 4, 2)), 65, {"bad.json: is of 4 experts", "has 8"}));
  EXPECT_TRUE(refused(with(map_of(shuffled(3, 12, 0), 12, 2)), 65, {"bad.json: is of 12 experts", "has 8"}));
  EXPECT_TRUE(refused(with(map_of(rows, 8, 3)), 65, {"'ep' is 3, which does not divide the 10 slots"}));
  EXPECT_TRUE(refused(with(map_of(rows, 8, 1)), 64, {"is of 1 rank", "ep=2"}));
  json map = map_of(rows, 8, 2);
  map["experts_of_slots"][1][0] = 8;
  EXPECT_TRUE(refused(with(map), 65, {"layer 1, slot 0", "holds 8"}));
  map = map_of(rows, 8, 2);
  for (auto& expert : map["experts_of_slots"][2]) {
    if (expert == 5) expert = 4;
  }
  EXPECT_TRUE(refused(with(map), 65, {"layer 2", "holds expert 5"}));
  const std::string good = put_map(map_of(rows, 8, 2));
  EXPECT_TRUE(
      refused(run_plain(plan({"--expert-map", dir_ / "none.json"})), 74, {"--expert-map", "none.json"}));
  EXPECT_TRUE(refused(run_plain(plan({"--expert-map", ""})), 64, {"--expert-map", "is empty"}));
  EXPECT_TRUE(
      refused(run_plain(plan({"--expert-map", good, "--placement", "trivial"})), 64, {"--placement"}));
  EXPECT_TRUE(refused(run_plain(plan({"--expert-map", good, "--redundant-experts", "2"})), 64,
                      {"--redundant-experts"}));
  EXPECT_TRUE(refused(run_plain(plan({"--placement", "linear"})), 64, {"contiguous, trivial, round-robin"}));
  EXPECT_TRUE(refused(run_plain(plan({"--placement", "round-robin", "--redundant-experts", "2"})), 64,
                      {"--redundant-experts 2", "go round"}));
  EXPECT_TRUE(refused(run_plain(plan({"--redundant-experts", "3"})), 64, {"11 slots, which ep=2"}));
  EXPECT_TRUE(refused(run_plain(plan({"--redundant-experts", "-1"})), 64, {"--redundant-experts"}));
  EXPECT_TRUE(
      refused(run_plain({"plan", "--source", trained(0), "--inference-alloc", "hf", "--expert-map", good}),
              64, {"hf has the model's own tensors"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--model", model_folder("tiny-qwen3"), "--expert-map", good}), 64,
                      {"has no experts"}));
  EXPECT_TRUE(refused(run_plain({"bench", "--layouts", "--model", trained(0), "--placement", "trivial"}), 64,
                      {"--placement", "--layouts"}));
  // In a job rank 0 alone reads it, and all are told.
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--expert-map", put_map(map, "bad.json")}),
                      65, {"bad.json: layer 2", "holds expert 5"}));
}

}  // namespace
}  // namespace weightcast::test_support
