// synth → sync → verify for the layouts that users run.

#include <memory>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

struct Layout {
  std::string name;
  std::string model;
  int ranks;
  int shards;
  Words options;
};

/// What test listings show.
std::ostream& operator<<(std::ostream& out, const Layout& layout) {
  return out << layout.name;
}

class Layouts : public CliTest, public ::testing::WithParamInterface<Layout> {};

TEST_P(Layouts, ShardsHoldTheCheckpoint) {
  const Layout& layout = GetParam();
  const std::string source = dir_ / "model";
  const std::string json = dir_ / "report.json";
  EXPECT_TRUE(done(run_plain({"synth", "--model", model_folder(layout.model), "--output", source})));
  EXPECT_TRUE(done(run_job(
      layout.ranks,
      Words{"sync", "--source", source, "--sink", "hdf5:" + sink_, "--json", json} + layout.options)));
  EXPECT_TRUE(read_json(json).at("verified").get<bool>());
  const Outcome verify = run_plain({"verify", sink_, "--source", source});
  EXPECT_TRUE(done(verify));
  EXPECT_TRUE(has(verify.out, {std::to_string(layout.shards) + " shards"}));
  EXPECT_EQ(folder_contents(sink_).size(), layout.shards);
}

constexpr const char* kDense = "tiny-qwen3";
constexpr const char* kMoe = "tiny-qwen3-moe";

INSTANTIATE_TEST_SUITE_P(
    Dense, Layouts,
    ::testing::Values(
        Layout{"One", kDense, 2, 1, {}}, Layout{"Tp2", kDense, 3, 2, {"--inference", "tp=2"}},
        Layout{"Tp8", kDense, 9, 8, {"--inference", "tp=8"}},
        Layout{"Pp3", kDense, 4, 3, {"--inference", "pp=3"}},
        Layout{"Pp3Tp2", kDense, 8, 6, {"--inference", "pp=3,tp=2", "--trainers", "2"}},
        Layout{"Colocated", kDense, 4, 4, {"--inference", "tp=4", "--colocate"}},
        Layout{"SmallBuckets", kDense, 3, 2, {"--inference", "tp=2", "--bucket-size", "64KiB"}},
        Layout{
            "OneBuffer", kDense, 3, 2, {"--inference", "tp=2", "--bucket-size", "64KiB", "--buffers", "1"}}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Moe, Layouts,
    ::testing::Values(
        Layout{"Tp2", kMoe, 3, 2, {"--inference", "tp=2"}},
        Layout{"Tp2Ep2", kMoe, 3, 2, {"--inference", "tp=2,ep=2"}},
        Layout{"Tp4Ep2", kMoe, 5, 4, {"--inference", "tp=4,ep=2"}},
        Layout{"Tp4Ep2Cutlass",
               kMoe,
               6,
               4,
               {"--inference", "tp=4,ep=2", "--moe-layout", "cutlass", "--trainers", "2"}},
        Layout{"Tp4Ep2TritonKernels",
               kMoe,
               5,
               4,
               {"--inference", "tp=4,ep=2", "--moe-layout", "triton-kernels"}},
        // Ranks whose part of the experts is padded, and padding alone.
        Layout{"Tp4Trtllm",
               kMoe,
               5,
               4,
               {"--inference", "tp=4", "--moe-layout", "trtllm", "--bucket-size", "64KiB"}},
        Layout{"ColocatedTrtllm",
               kMoe,
               2,
               2,
               {"--inference", "tp=2,ep=2", "--moe-layout", "trtllm", "--colocate"}},
        Layout{"Replicas", kMoe, 6, 4, {"--inference", "tp=2,ep=2,replicas=2", "--trainers", "2"}},
        Layout{"Pp3Replicas", kMoe, 7, 6, {"--inference", "pp=3,replicas=2"}},
        Layout{"Colocated", kMoe, 4, 4, {"--inference", "tp=4,ep=4", "--colocate"}},
        Layout{"ColocatedReplicas", kMoe, 4, 4, {"--inference", "tp=2,ep=1,replicas=2", "--colocate"}},
        Layout{"Whole", kMoe, 4, 2, {"--inference-alloc", "hf:d2", "--trainers", "2"}},
        Layout{"Vllm", kMoe, 3, 2, {"--inference-alloc", "vllm:t2e2"}},
        Layout{"AttentionOfItsOwn",
               kMoe,
               5,
               4,
               {"--inference", "attn_tp=2,attn_dp=2,ep=4", "--moe-layout", "cutlass"}},
        Layout{"VllmAttentionOfItsOwnInUnevenStages",
               kMoe,
               5,
               4,
               {"--inference-alloc", "vllm:(attn:d2p2t1|ffn:e2)", "--inference-stage-layers", "2,1"}},
        Layout{"VllmCpu",
               kMoe,
               5,
               4,
               {"--inference", "tp=4", "--engine", "vllm", "--moe-layout", "vllm-cpu", "--bucket-size",
                "64KiB"}},
        Layout{"FanOutAll", kMoe, 5, 4, {"--inference", "tp=2,ep=2,replicas=2", "--fan-out", "all"}},
        Layout{"SmallBuckets",
               kMoe,
               4,
               2,
               {"--inference", "tp=2,ep=2", "--trainers", "2", "--bucket-size", "64KiB", "--buffers", "2"}},
        Layout{"SmallBucketsCutlassAll",
               kMoe,
               4,
               2,
               {"--inference", "tp=2", "--trainers", "2", "--bucket-size", "64KiB", "--moe-layout", "cutlass",
                "--fan-out", "all"}}),
    [](const auto& test) { return test.param.name; });

using LayoutPairs = CliTest;

TEST_F(LayoutPairs, FanOutAndBucketsChangeNothingInTheShards) {
  const Words base = sync_words(trained(0));
  EXPECT_TRUE(done(run_job(3, base)));
  const auto expected = shard_contents(sink_);
  EXPECT_TRUE(done(run_job(3, base + Words{"--fan-out", "all"})));
  EXPECT_EQ(shard_contents(sink_), expected);
  EXPECT_TRUE(done(run_job(5, base + Words{"--trainers", "3", "--bucket-size", "64KiB", "--buffers", "1"})));
  EXPECT_EQ(shard_contents(sink_), expected);
  EXPECT_TRUE(done(run_job(2, base + Words{"--colocate"})));
  EXPECT_EQ(shard_contents(sink_), expected);
}

TEST_F(LayoutPairs, ReplicasAreEqual) {
  EXPECT_TRUE(done(run_job(5, {"sync", "--source", trained(0), "--inference", "tp=2,ep=2,replicas=2",
                               "--sink", "hdf5:" + sink_})));
  std::map<std::string, std::string> contents = shard_contents(sink_);
  for (const auto& [name, bytes] : contents) {
    std::string twin = name;
    if (name.starts_with("rank-0")) twin.replace(0, 6, "rank-2");
    if (name.starts_with("rank-1")) twin.replace(0, 6, "rank-3");
    EXPECT_EQ(contents.at(twin), bytes) << name;
  }
}

TEST_F(LayoutPairs, CutlassSwapsTheHalvesOfTheTritonLayout) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  const auto triton = shard_contents(sink_);
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)) + Words{"--moe-layout", "cutlass"})));
  const auto cutlass = shard_contents(sink_);
  ASSERT_EQ(triton.size(), cutlass.size());
  for (const auto& [name, contents] : triton) {
    if (!name.ends_with("w13_weight")) {
      EXPECT_EQ(cutlass.at(name), contents) << name;
      continue;
    }
    // [4, 128, 128] of two bytes, behind dtype and shape: in each expert 64 rows of gate and 64 of up.
    constexpr std::size_t kHalf = std::size_t{64} * 128 * 2;
    const std::size_t start = contents.size() - 8 * kHalf;
    for (std::size_t half = 0; half < 8; ++half) {
      EXPECT_EQ(contents.substr(start + half * kHalf, kHalf),
                cutlass.at(name).substr(start + (half ^ 1) * kHalf, kHalf))
          << name << " half " << half;
    }
  }
}

}  // namespace
}  // namespace weightcast::test_support
