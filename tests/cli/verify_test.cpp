#include <hdf5.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>

#include "cli/cli.hpp"
#include "storage/writer.hpp"

namespace weightcast::test_support {
namespace {

class Verify : public CliTest {
 protected:
  void sync(const std::string& sink, int version, const Words& layout = {"--inference", "tp=2,ep=2"},
            int ranks = 3) const {
    EXPECT_TRUE(done(run_job(ranks, Words{"sync", "--source", trained(0), "--sink", "hdf5:" + sink,
                                          "--weight-version", std::to_string(version)} +
                                        layout)));
  }
  /// Makes a shard say whose names it has, or nothing about that.
  static void set_engine(const std::string& shard, const char* engine) {
    const hid_t file = H5Fopen(shard.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    ASSERT_GE(file, 0);
    EXPECT_GE(H5Adelete(file, "weightcast.engine"), 0);
    if (engine != nullptr) {
      const hid_t type = H5Tcopy(H5T_C_S1);
      H5Tset_size(type, std::strlen(engine));
      const hid_t space = H5Screate(H5S_SCALAR);
      const hid_t attribute = H5Acreate2(file, "weightcast.engine", type, space, H5P_DEFAULT, H5P_DEFAULT);
      EXPECT_GE(H5Awrite(attribute, type, engine), 0);
      H5Aclose(attribute);
      H5Sclose(space);
      H5Tclose(type);
    }
    EXPECT_GE(H5Fclose(file), 0);
  }
  Outcome verify() const { return run_plain({"verify", sink_, "--source", trained(0)}); }

  /// Where the first bytes of a tensor (from `skip` on) are in a shard file.
  static std::size_t find(const std::string& shard, const std::string& tensor, std::size_t skip = 0) {
    const auto checkpoint = SafetensorsFile::read(trained(0) + "/model.safetensors");
    const std::size_t found = get_file(shard).find(checkpoint.tensors.at(tensor).data.substr(skip, 64));
    EXPECT_NE(found, std::string::npos) << tensor;
    return found;
  }
};

TEST_F(Verify, WhatNoUpdateWritesIsSaidToBeLeftOut) {
  // The last layers have keys and values of others: rows of their projections that no tensor feeds.
  const std::string model = dir_ / "gemma";
  ASSERT_TRUE(
      done(run_plain({"synth", "--model", std::string(kData) + "/vllm/gemma4-ple", "--output", model})));
  ASSERT_TRUE(
      done(run_job(3, {"sync", "--source", model, "--inference", "tp=2", "--sink", "hdf5:" + sink_})));
  const std::string report = dir_ / "report.json";
  const Outcome outcome = run_plain({"verify", sink_, "--source", model, "--json", report});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"of the parameters no update writes, and they are not compared"}));
  EXPECT_GT(read_json(report).at("unwritten_bytes"), 0);
  // Of other models all is written.
  sync(dir_ / "whole", 1);
  const Outcome whole = run_plain({"verify", dir_ / "whole", "--source", trained(0)});
  EXPECT_TRUE(done(whole));
  EXPECT_FALSE(has(whole.out, {"no update writes"}));
}

TEST_F(Verify, OneChangedBitIsFoundAndNamed) {
  sync(sink_, 1);
  EXPECT_TRUE(done(verify()));
  const std::vector<std::array<std::string, 3>> places{
      {"rank-0.h5", "model.layers.2.mlp.experts.1.down_proj.weight", "model.layers.2.mlp.experts.w2_weight"},
      {"rank-1.h5", "model.layers.0.mlp.experts.7.up_proj.weight", "model.layers.0.mlp.experts.w13_weight"},
      {"rank-0.h5", "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.qkv_proj.weight"},
      {"rank-0.h5", "lm_head.weight", "lm_head.weight"},
      {"rank-1.h5", "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.weight"}};
  for (const auto& [shard, tensor, parameter] : places) {
    const std::string path = sink_ + "/" + shard;
    const std::size_t at = find(path, tensor) + 63;
    flip_bit(path, at);
    EXPECT_TRUE(refused(verify(), 66, {path, tensor, parameter}));
    flip_bit(path, at);
  }
  EXPECT_TRUE(done(verify()));
}

TEST_F(Verify, TensorsThatDifferAreCounted) {
  sync(sink_, 1);
  const std::string first = sink_ + "/rank-0.h5";
  const std::string second = sink_ + "/rank-1.h5";
  flip_bit(first, find(first, "model.layers.1.self_attn.q_proj.weight") + 63);
  flip_bit(second, find(second, "model.layers.1.mlp.gate.weight") + 63);
  flip_bit(second, find(second, "model.layers.0.mlp.experts.7.up_proj.weight") + 63);
  EXPECT_TRUE(refused(verify(), 66,
                      {first,
                       "model.layers.1.self_attn.qkv_proj.weight differs from tensor "
                       "model.layers.1.self_attn.q_proj.weight (rows ",
                       "; 3 of 102 tensors differ"}));
}

TEST_F(Verify, PaddingThatIsNotZero) {
  // The vocabulary of 259 is padded to 320; the second rank has rows 160 to 319, of which the last 61 are
  // padding.
  sync(sink_, 1);
  const std::string path = sink_ + "/rank-1.h5";
  constexpr std::size_t kRowBytes = std::size_t{128} * 2;
  flip_bit(path, find(path, "lm_head.weight", 258 * kRowBytes) + kRowBytes);
  EXPECT_TRUE(refused(verify(), 66, {path, "padding", "lm_head.weight"}));
  flip_bit(path, find(path, "lm_head.weight", 258 * kRowBytes) + kRowBytes);
  EXPECT_TRUE(done(verify()));
  // To its last byte.
  flip_bit(path, find(path, "lm_head.weight", 258 * kRowBytes) + 62 * kRowBytes - 1);
  EXPECT_TRUE(refused(verify(), 66, {path, "padding", "lm_head.weight"}));
}

TEST_F(Verify, SizesThatNoLayoutHas) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  const auto refuses = [&](const std::map<std::string, std::int64_t>& sizes) {
    Attributes attributes{{"kind", std::string("shard")}, {"moe_layout", std::string("triton")}};
    for (const char* name : {"rank", "weight_version", "replica", "pp_rank", "tp_rank", "ep_rank"}) {
      attributes[name] = std::int64_t{0};
    }
    for (const char* name : {"replicas", "pp_size", "tp_size", "ep_size"}) {
      attributes[name] = sizes.contains(name) ? sizes.at(name) : 1;
    }
    create_hdf5(sink_ + "/rank-0.h5", attributes, {})->commit();
    EXPECT_TRUE(refused(verify(), 65, {sink_}));
  };
  for (const char* name : {"replicas", "pp_size", "tp_size", "ep_size"}) {
    for (const std::int64_t size : {kHuge, std::int64_t{0}, -kHuge, std::int64_t{1} << 20})
      refuses({{name, size}});
  }
  refuses({{"tp_size", kHuge}, {"ep_size", kHuge}});
  // Products that come back to one, or to none.
  refuses({{"tp_size", std::int64_t{1} << 32}, {"pp_size", std::int64_t{1} << 32}, {"replicas", kHuge}});
  refuses({{"tp_size", -1}, {"pp_size", -1}});
}

TEST_F(Verify, ShardsOfBeforeTheEngineWasRecorded) {
  sync(sink_, 1);
  for (const std::string shard : {"/rank-0.h5", "/rank-1.h5"}) set_engine(sink_ + shard, nullptr);
  EXPECT_TRUE(done(verify()));
}

TEST_F(Verify, ShardsOfAnotherEngine) {
  sync(sink_, 1, {"--inference-alloc", "vllm:t2e2"});
  EXPECT_TRUE(done(verify()));
  // Names that are not that engine's.
  for (const std::string shard : {"/rank-0.h5", "/rank-1.h5"}) set_engine(sink_ + shard, "sglang");
  EXPECT_TRUE(refused(verify(), 65, {sink_, "w13_weight"}));
  set_engine(sink_ + "/rank-1.h5", "vllm");
  EXPECT_TRUE(refused(verify(), 65, {sink_, "mixed", "sglang", "vllm"}));
  for (const std::string shard : {"/rank-0.h5", "/rank-1.h5"}) set_engine(sink_ + shard, "v\x1bllm");
  EXPECT_TRUE(refused(verify(), 65, {sink_, "v\\x1bllm", "not known"}));
}

TEST_F(Verify, AnotherCheckpoint) {
  sync(sink_, 1);
  EXPECT_TRUE(
      refused(run_plain({"verify", sink_, "--source", trained(1)}), 66, {sink_ + "/rank-0.h5", "tensor"}));
}

TEST_F(Verify, MixedVersions) {
  sync(sink_, 1);
  sync(dir_ / "other", 2);
  std::filesystem::copy(dir_ / "other/rank-1.h5", sink_ + "/rank-1.h5",
                        std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(refused(verify(), 65, {sink_, "rank-0.h5", "weight_version 1", "rank-1.h5", "2", "again"}));
}

TEST_F(Verify, MixedUpdatesToOneVersion) {
  sync(sink_, 1);
  sync(dir_ / "other", 1);
  std::filesystem::copy(dir_ / "other/rank-1.h5", sink_ + "/rank-1.h5",
                        std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(refused(verify(), 65, {sink_, "rank-0.h5 and rank-1.h5", "different updates", "again"}));
}

TEST_F(Verify, MixedLayouts) {
  sync(sink_, 1);
  sync(dir_ / "other", 1, {"--inference", "tp=2,ep=1"});
  sync(dir_ / "cutlass", 1, {"--inference", "tp=2,ep=2", "--moe-layout", "cutlass"});
  const auto replace_with = [&](const std::string& folder) {
    std::filesystem::copy(dir_ / folder + "/rank-1.h5", sink_ + "/rank-1.h5",
                          std::filesystem::copy_options::overwrite_existing);
  };
  replace_with("other");
  EXPECT_TRUE(refused(verify(), 65, {sink_, "ep_size", "rank-1.h5"}));
  replace_with("cutlass");
  EXPECT_TRUE(refused(verify(), 65, {sink_, "triton", "cutlass"}));
}

TEST_F(Verify, DataParallelAttention) {
  sync(sink_, 1, {"--inference", "attn_tp=1,attn_dp=4,ep=4", "--engine", "vllm"}, 5);
  EXPECT_TRUE(done(verify()));
  EXPECT_TRUE(has(run_plain({"inspect", sink_}).out, {"attn_tp 1 × attn_dp 4, ep 4, names of vllm"}));
  // All of the attention and the vocabulary is on every rank, of eight experts another two.
  const auto contents = shard_contents(sink_);
  std::set<std::string> experts;
  for (const auto& [name, bytes] : contents) {
    const std::string parameter = name.substr(name.find(':'));
    if (parameter.find(".experts.") == std::string::npos) {
      for (const std::string rank : {"rank-0.h5", "rank-1.h5", "rank-2.h5", "rank-3.h5"})
        EXPECT_EQ(contents.at(rank + parameter), bytes) << name;
    } else {
      EXPECT_TRUE(experts.insert(bytes).second) << name;
    }
  }
  // An engine of the same number of ranks and other cuts.
  sync(dir_ / "other", 1, {"--inference", "tp=4,ep=4", "--engine", "vllm"}, 5);
  std::filesystem::copy(dir_ / "other/rank-1.h5", sink_ + "/rank-1.h5",
                        std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(refused(verify(), 65, {sink_, "attn_dp_size 4", "rank-1.h5 has 1"}));
  sync(sink_, 2, {"--inference", "attn_tp=1,attn_dp=4,ep=4", "--engine", "vllm"}, 5);
  const auto forget = [&](const char* attribute) {
    for (const std::string shard : {"/rank-0.h5", "/rank-1.h5", "/rank-2.h5", "/rank-3.h5"}) {
      const hid_t file = H5Fopen((sink_ + shard).c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
      EXPECT_GE(H5Adelete(file, attribute), 0);
      EXPECT_GE(H5Fclose(file), 0);
    }
  };
  forget("weightcast.attn_dp_size");
  EXPECT_TRUE(refused(verify(), 65, {"rank-0.h5: impossible layout tp=4", "attn_tp=1 attn_dp=1"}));
  // Shards that say nothing of it are of a plain layout, whose parameters are smaller.
  forget("weightcast.attn_tp_size");
  EXPECT_TRUE(refused(verify(), 65, {"rank-1.h5", "was it renamed?"}));
}

TEST_F(Verify, MissingRanks) {
  sync(sink_, 1);
  for (const char* name : {"rank-1.h5", "rank-0.h5"}) {
    std::filesystem::rename(sink_ + "/" + name, dir_ / "kept");
    EXPECT_TRUE(refused(verify(), 65, {sink_, name, "missing"}));
    std::filesystem::rename(dir_ / "kept", sink_ + "/" + name);
  }
  EXPECT_TRUE(done(verify()));
}

TEST_F(Verify, ShardsOfAnEarlierLargerLayout) {
  sync(sink_, 1, {"--inference", "tp=2,ep=2,replicas=2"}, 5);
  EXPECT_TRUE(done(verify()));
  // A smaller layout takes the place of the larger one, whole, even if that has lost a shard.
  std::filesystem::remove(sink_ + "/rank-2.h5");
  sync(sink_, 1);
  EXPECT_EQ(folder_contents(sink_).size(), 2);
  EXPECT_TRUE(done(verify()));
}

TEST_F(Verify, MoreShardsThanRanks) {
  sync(sink_, 1);
  std::filesystem::copy(sink_ + "/rank-1.h5", sink_ + "/rank-2.h5");
  EXPECT_TRUE(refused(verify(), 65, {sink_}));
}

TEST_F(Verify, RanksThatAreNamedLikeOthers) {
  sync(sink_, 1);
  std::filesystem::copy(sink_ + "/rank-0.h5", sink_ + "/rank-1.h5",
                        std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(refused(verify(), 65, {sink_, "rank-1.h5"}));
}

TEST_F(Verify, FoldersThatHoldNoShards) {
  EXPECT_TRUE(refused(verify(), 74, {sink_, "no such folder", "--sink"}));
  std::filesystem::create_directory(sink_);
  EXPECT_TRUE(refused(verify(), 65, {sink_, "no shard files", "rank-<n>.h5"}));
  put_old_shards();
  EXPECT_TRUE(refused(verify(), 65, {sink_ + "/rank-"}));
}

TEST_F(Verify, ACheckpointInPlaceOfAShard) {
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", sink_ + "/rank-0.h5"})));
  EXPECT_TRUE(refused(verify(), 65, {sink_ + "/rank-0.h5", "shard file"}));
}

TEST_F(Verify, ATruncatedShard) {
  sync(sink_, 1);
  const std::string path = sink_ + "/rank-1.h5";
  const std::string bytes = get_file(path);
  put_file(path, bytes.substr(0, bytes.size() / 2));
  EXPECT_TRUE(refused(verify(), 65, {path}));
}

TEST_F(Verify, OfAnotherModel) {
  sync(sink_, 1);
  EXPECT_TRUE(
      done(run_plain({"synth", "--model", model_folder("tiny-qwen3-moe"), "--output", dir_ / "model"})));
  EXPECT_TRUE(refused(run_plain({"verify", sink_, "--source", dir_ / "model"}), 65, {sink_ + "/rank-0.h5"}));
}

}  // namespace
}  // namespace weightcast::test_support
