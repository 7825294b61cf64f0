#include <algorithm>
#include <numeric>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class PlanTest : public CliTest {
 protected:
  nlohmann::json plan(const Words& more) const {
    const std::string json = dir_ / "plan.json";
    EXPECT_TRUE(done(run_plain(Words{"plan", "--json", json} + more)));
    return read_json(json);
  }
};

TEST_F(PlanTest, ManyExpertsInOneTensorTakeNoLongerThanManyTensors) {
  for (const auto& [name, field] :
       {std::pair("gpt-oss", "num_local_experts"), std::pair("gemma4-moe", "num_experts")}) {
    nlohmann::json config = read_json(std::string(kData) + "/vllm/" + name + "/config.json");
    config[field] = 16'384;
    put_file(dir_ / "config.json", config.dump());
    // Seconds of a processor: each box beside each other one takes half a minute.
    EXPECT_TRUE(done(run({{"sh", "-c", "ulimit -t 10; exec \"$0\" \"$@\"", WEIGHTCAST_BINARY, "plan",
                           "--model", dir_ / "config.json", "--inference", "tp=2"},
                          {}})));
  }
}

TEST_F(PlanTest, NumbersAddUp) {
  const auto json = plan({"--source", trained(0), "--trainers", "2", "--inference", "tp=2,ep=2,replicas=2",
                          "--bucket-size", "64KiB", "--buffers", "4"});
  EXPECT_EQ(json.at("trainers"), 2);
  EXPECT_EQ(json.at("inference").at("replicas"), 2);
  EXPECT_EQ(json.at("bucket_bytes"), 64 << 10);
  EXPECT_EQ(json.at("model").at("tensors"), 102);
  EXPECT_LE(json.at("staging_bytes_per_rank"), 4 * (64 << 10));

  std::int64_t wire = 0;
  std::vector<std::int64_t> sent(2);
  std::vector<std::int64_t> received(6);
  std::set<std::pair<int, int>> routes;
  for (const auto& bucket : json.at("buckets")) {
    const std::int64_t bytes = bucket.at("bytes");
    EXPECT_GT(bytes, 0);
    EXPECT_LE(bytes, 64 << 10);
    wire += bytes;
    sent.at(bucket.at("root")) += bytes;
    const std::size_t destinations = bucket.at("destinations");
    for (const std::size_t coordinate : json.at("destinations").at(destinations)) {
      for (const std::size_t replica : {0, 1}) received.at(2 + replica * 2 + coordinate) += bytes;
    }
    routes.emplace(bucket.at("root"), bucket.at("destinations"));
  }
  EXPECT_EQ(json.at("wire_bytes"), wire);
  EXPECT_EQ(json.at("routes"), routes.size());
  ASSERT_EQ(json.at("ranks").size(), 6);
  for (std::size_t rank = 0; rank < 6; ++rank) {
    EXPECT_EQ(json.at("ranks")[rank].at("sent"), rank < 2 ? sent[rank] : 0) << rank;
    EXPECT_EQ(json.at("ranks")[rank].at("received"), received[rank]) << rank;
  }
  // The trainers share the work.
  EXPECT_LT(*std::max_element(sent.begin(), sent.end()), 0.55 * static_cast<double>(wire));
}

/// Expects the segments to cover every element of every tensor of the catalog once.
void expect_each_element_once(const nlohmann::json& json, const SafetensorsFile& checkpoint) {
  std::map<std::string, std::vector<char>> written;
  for (const auto& [name, tensor] : checkpoint.tensors) written[name].resize(tensor.data.size() / 2);
  for (const auto& bucket : json.at("buckets")) {
    for (const auto& segment : bucket.at("segments")) {
      const auto& tensor = checkpoint.tensors.at(segment.at("tensor"));
      const std::int64_t cols = tensor.shape.back();
      auto& elements = written.at(segment.at("tensor"));
      for (std::int64_t row = segment.at("rows")[0]; row < segment.at("rows")[1]; ++row) {
        for (std::int64_t col = segment.at("columns")[0]; col < segment.at("columns")[1]; ++col) {
          ++elements.at(static_cast<std::size_t>(row * cols + col));
        }
      }
    }
  }
  for (const auto& [name, elements] : written) {
    EXPECT_TRUE(std::all_of(elements.begin(), elements.end(), [](char count) { return count == 1; })) << name;
  }
}

TEST_F(PlanTest, EveryElementTravelsOnce) {
  const auto checkpoint = SafetensorsFile::read(trained(0) + "/model.safetensors");
  for (const Words& layout :
       {Words{"--inference", "tp=2,ep=2"}, Words{"--inference", "tp=4,ep=2", "--trainers", "3"},
        Words{"--inference", "tp=2", "--moe-layout", "cutlass", "--bucket-size", "64KiB"},
        Words{"--inference", "pp=3", "--colocate"},
        Words{"--inference", "tp=8,ep=8,replicas=2", "--fan-out", "all"}}) {
    expect_each_element_once(plan(Words{"--source", trained(0), "--segments"} + layout), checkpoint);
  }
}

TEST_F(PlanTest, NeededSendsToEachRankWhatItNeeds) {
  const Words layout{"--source", trained(0), "--inference", "tp=2,ep=2"};
  const auto needed = plan(layout);
  const auto all = plan(layout + Words{"--fan-out", "all"});
  EXPECT_EQ(all.at("fan_out"), "all");
  EXPECT_EQ(all.at("destinations").size(), 1);
  EXPECT_EQ(all.at("routes"), 1);
  for (const std::size_t rank : {1, 2}) {
    EXPECT_GE(all.at("ranks")[rank].at("received"), all.at("model").at("bytes"));
    // The experts, which are the most of the model, go to one rank each.
    EXPECT_LT(needed.at("ranks")[rank].at("received").get<double>(),
              0.7 * all.at("model").at("bytes").get<double>());
  }
}

TEST_F(PlanTest, SameInputsSamePlan) {
  const Words words{"--model", model_folder("tiny-qwen3-moe"), "--inference", "tp=4,ep=2", "--trainers", "2"};
  const auto first = plan(words);
  EXPECT_EQ(plan(words), first);
  EXPECT_NE(plan(words + Words{"--bucket-size", "64KiB"}).at("hash"), first.at("hash"));
  EXPECT_NE(plan(words + Words{"--moe-layout", "cutlass"}).at("hash"), first.at("hash"));
}

TEST_F(PlanTest, SaysHowOftenTheAttentionIsThere) {
  const Words words{"--source", trained(0), "--inference", "attn_tp=1,attn_dp=4,ep=4"};
  const Outcome outcome = run_plain(Words{"plan"} + words);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"1 replica × pp 1 × attn_tp 1 × attn_dp 4, ep 4",
                                "inference 1 (replica 0 pp 0 attn_dp 1 attn_tp 0 ep 1)"}));
  const auto json = plan(words);
  EXPECT_EQ(json.at("inference").at("attn_dp"), 4);
  EXPECT_EQ(json.at("inference").at("attn_tp"), 1);
  EXPECT_EQ(plan({"--source", trained(0), "--inference-alloc", "sglang:(attn:d4|ffn:e4)"}).at("hash"),
            json.at("hash"));
  const auto plain = plan({"--source", trained(0), "--inference", "tp=4,ep=4"});
  EXPECT_NE(plain.at("hash"), json.at("hash"));
  EXPECT_FALSE(plain.at("inference").contains("attn_dp"));
}

TEST_F(PlanTest, TextBeginsWithTheAnswer) {
  const Outcome outcome =
      run_plain({"plan", "--source", trained(0), "--inference", "tp=2,ep=2", "--progress", "never"});
  EXPECT_TRUE(done(outcome));
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(outcome.out.starts_with("# 1 trainer sends ")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, {"2 inference ranks get", "busiest sender: rank 0 with 1.49 MiB, 1.00 ×",
                                "busiest receiver: rank 1 with", "steps: 3,", "--link-gbps N",
                                "Qwen3MoeForCausalLM", "102 tensors", "3 ranks", "3 routes", "median",
                                "inference 1 (replica 0 pp 0 tp 1 ep 1)"}));
  // The summary is at the top, before what it was made of.
  EXPECT_LT(outcome.out.find("# lower bound"), outcome.out.find("# model"));
}

TEST_F(PlanTest, EverythingFitsEightyColumns) {
  const Words tall{"plan", "--model", model_folder("Qwen3-30B-A3B"), "--layers", "4"};
  for (const Words& layout :
       {Words{"--trainers", "8", "--inference", "tp=4,ep=4,replicas=2"},
        Words{"--colocate", "--alloc", "sglang:d2p1t4+megatron:(attn:d1p4t2c1|ffn:d1p4t1e2)"},
        Words{"--alloc", "sglang:d2p1t2e2+megatron:(attn:d2p4t2c2|ffn:d1p4t2e4)", "--all"}}) {
    const Outcome outcome = run_plain(tall + layout);
    EXPECT_TRUE(done(outcome));
    std::string text = outcome.out;
    // The name of a file has no place to be broken at.
    const std::size_t name = text.find(model_folder("Qwen3-30B-A3B"));
    text.erase(name, text.find('\n', name) - name);
    EXPECT_EQ(too_wide(text), "");
  }
}

TEST_F(PlanTest, SecondsOfALink) {
  const Words words{"plan", "--source", trained(0), "--inference", "tp=2,ep=2", "--link-gbps"};
  const Outcome outcome = run_plain(words + Words{"0.1", "--json", dir_ / "plan.json"});
  EXPECT_TRUE(done(outcome));
  // The trainer has 1.49 MiB to send, 12.5 MB in a second.
  EXPECT_TRUE(has(outcome.out, {"lower bound: 0.125 s at 0.1 Gbit/s"}));
  const auto json = read_json(dir_ / "plan.json");
  EXPECT_NEAR(json.at("least_seconds"), json.at("ranks")[0].at("sent").get<double>() / 12.5e6, 1e-9);
  for (const char* value : {"0", "-1", "fast", "inf"}) {
    EXPECT_TRUE(refused(run_plain(words + Words{value}), 64, {"--link-gbps", value, "400"}));
  }
}

TEST_F(PlanTest, AllRowsWhereTheyAreAskedFor) {
  const Words words{"plan", "--source", trained(0), "--trainers", "7", "--inference", "tp=8,ep=8"};
  const auto rows = [](const std::string& text, const std::string& role) {
    std::size_t count = 0;
    for (std::size_t at = text.find(role); at != std::string::npos; at = text.find(role, at + 1)) ++count;
    return count;
  };
  const Outcome few = run_plain(words);
  EXPECT_TRUE(has(few.out, {"and 2 trainers; --all lists them", "and 3 inference ranks;", "routes; --all"}));
  EXPECT_EQ(rows(few.out, "  trainer\n"), 5);
  EXPECT_EQ(rows(few.out, "  inference "), 5);
  const Outcome all = run_plain(words + Words{"--all"});
  EXPECT_FALSE(has(all.out, {"--all"}));
  EXPECT_EQ(rows(all.out, "  trainer\n"), 7);
  EXPECT_EQ(rows(all.out, "  inference "), 8);
}

TEST_F(PlanTest, WhatNeedNotTravelIsSaid) {
  EXPECT_TRUE(has(run_plain({"plan", "--source", trained(0), "--colocate"}).out, {"nothing travels"}));
}

TEST_F(PlanTest, ShareOfOneRank) {
  const Words words{"plan", "--source", trained(0), "--inference", "tp=2,ep=2", "--rank"};
  const Outcome trainer = run_plain(words + Words{"0"});
  EXPECT_TRUE(done(trainer));
  EXPECT_TRUE(
      has(trainer.out, {"rank 0", "trainer", "sent", "1.49 MiB", "received", "0 B", "moves", "staging"}));
  const Outcome inference = run_plain(words + Words{"2"});
  EXPECT_TRUE(done(inference));
  EXPECT_TRUE(has(inference.out, {"rank 2", "inference 1", "parameters", "moves", "staging"}));
  EXPECT_TRUE(refused(run_plain(words + Words{"3"}), 64, {"--rank 3", "3 ranks"}));
  // What a rank hands to itself does not travel.
  const Outcome alone = run_plain({"plan", "--source", trained(0), "--colocate", "--rank", "0"});
  std::string text = alone.out;
  text.erase(std::unique(text.begin(), text.end(), [](char a, char b) { return a == ' ' && b == ' '; }),
             text.end());
  EXPECT_TRUE(has(text, {"\nsent 0 B\nreceived 0 B\nbuckets 1\n"}));
}

TEST_F(PlanTest, LayersShortenTheModel) {
  const auto json = plan({"--model", model_folder("Qwen3-30B-A3B"), "--layers", "3", "--inference", "tp=2"});
  // Attention, norms, router and 128 experts of three matrices; embedding, head and final norm.
  EXPECT_EQ(json.at("model").at("tensors"), 3 * (8 + 1 + 128 * 3) + 3);
}

TEST_F(PlanTest, OfALargeModel) {
  const auto json =
      plan({"--model", model_folder("Qwen3-235B-A22B"), "--inference", "tp=8,ep=8", "--trainers", "8"});
  EXPECT_NEAR(json.at("model").at("bytes").get<double>(), 235e9 * 2, 1e9);
  EXPECT_EQ(json.at("ranks").size(), 16);
  EXPECT_EQ(json.at("staging_bytes_per_rank"), 3 * (256 << 20));
}

}  // namespace
}  // namespace weightcast::test_support
