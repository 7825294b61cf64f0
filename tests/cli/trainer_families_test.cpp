// What Megatron's trainers hold of single families: there, back, and on to an engine; and, derived here from
// the checkpoint alone, what each rank's shard must have.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cli/families.hpp"
#include "engine/published.hpp"
#include "support/child.hpp"
#include "support/tensor_cuts.hpp"
#include "weightcast/client.h"

namespace weightcast::test_support {
namespace {

using Tensor = SafetensorsFile::Tensor;

/// The transpose of a matrix of two-byte elements.
Tensor transposed(const Tensor& whole) {
  Tensor turned{whole.dtype, {whole.shape.at(1), whole.shape.at(0)}, ""};
  for (std::int64_t col = 0; col < whole.shape.at(1); ++col) turned.data += columns(whole, col, 1).data;
  return turned;
}

/// Every second row, from `first` on.
Tensor every_second(const Tensor& whole, std::int64_t first) {
  std::vector<Tensor> kept;
  for (std::int64_t row = first; row < whole.shape.at(0); row += 2) kept.push_back(rows(whole, row, 1));
  return stacked(kept);
}

/// A part of what linear attention projects, one for each head, in the order of heads.
struct Heads {
  Tensor all;
  std::int64_t share(std::int64_t ranks) const { return all.shape.at(0) / ranks; }
  Tensor of_rank(std::int64_t rank, std::int64_t ranks) const {
    return rows(all, rank * share(ranks), share(ranks));
  }
};

class TrainerFamilies : public Families {
 protected:
  /// The shards of `trainers` ranks, as `convert` writes them.
  std::vector<SafetensorsFile> converted(const std::string& allocation, int trainers) const {
    const std::string shards = dir_ / "converted";
    EXPECT_TRUE(done(run_plain({"convert", "--source", source_, "--to", "megatron", "--output", shards,
                                "--trainer-alloc", allocation})));
    std::vector<SafetensorsFile> files;
    for (int rank = 0; rank < trainers; ++rank) {
      files.push_back(SafetensorsFile::read(fmt::format("{}/trainer-{}.safetensors", shards, rank)));
    }
    return files;
  }

  /// Starts `trainers` ranks that have published these shards and offer version 1, and waits for them.
  void publish(const std::string& shards, int trainers) {
    for (int rank = 0; rank < trainers; ++rank) {
      children_.push_back(std::make_unique<Child>([this, &shards, rank, trainers] {
        const engine::Published published(
            {folder_, "trainer", rank, trainers},
            read_checkpoint(fmt::format("{}/trainer-{}.safetensors", shards, rank)), 1);
        weightcast_offer(published.handle(), 1, 100);
        return 0;
      }));
      while (!std::filesystem::exists(fmt::format("{}/trainer-{}.json", folder_, rank))) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
  }

  std::string folder_ = dir_ / "weights";
  std::vector<std::unique_ptr<Child>> children_;
};

TEST_F(TrainerFamilies, MambaLayers) {
  make_source("nemotron-h");
  expect_trainers("megatron:(attn:d1p2t2c1|ffn:d1p2t1e2)", 4);
  expect_trainers("megatron:(attn:d2p1t2c1|ffn:d1p1t2e2)", 4);
  expect_trainers("megatron:(attn:d3p1t1c1|ffn:d1p1t1e3)", 3);
}

TEST_F(TrainerFamilies, LinearAttentionCutBetweenRanks) {
  for (const char* model : {"qwen3-next", "qwen3.5-moe"}) {
    SCOPED_TRACE(model);
    make_source(model);
    expect_trainers("megatron:(attn:d1p2t2c1|ffn:d1p2t1e2)", 4);
    expect_trainers("megatron:(attn:d2p1t1c1|ffn:d1p1t2e1)", 2);
    std::filesystem::remove_all(source_);
  }
  make_source("qwen3.5");
  expect_trainers("megatron:d1p2t2", 4);
}

TEST_F(TrainerFamilies, LinearAttentionWholeOnEachRank) {
  const Words whole{"--trainer-linear-attention", "whole"};
  make_source("qwen3-next");
  expect_trainers("megatron:(attn:d1p1t2c1|ffn:d1p1t1e2)", 2, whole);
  std::filesystem::remove_all(source_);
  make_source("qwen3.5");
  // Heads of linear attention are two: it is not cut here.
  expect_trainers("megatron:t4", 4, whole);
  EXPECT_TRUE(refused(run_plain({"convert", "--source", source_, "--to", "megatron", "--trainer-alloc",
                                 "megatron:t4", "--output", dir_ / "x"}),
                      64,
                      {"--trainer-alloc", "t=4", "key heads of model.layers.0.linear_attn (2)",
                       "--trainer-linear-attention whole"}));
}

TEST_F(TrainerFamilies, WhatARankHasOfLinearAttention) {
  constexpr std::int64_t kKeyHeads = 2;
  constexpr std::int64_t kValueHeads = 6;
  constexpr std::int64_t kKeyDim = 16;
  constexpr std::int64_t kValueDim = 24;
  constexpr std::int64_t kQueries = kKeyHeads * kKeyDim;
  constexpr std::int64_t kValues = kValueHeads * kValueDim;
  for (const bool grouped : {true, false}) {
    SCOPED_TRACE(grouped);
    make_source(grouped ? "qwen3-next" : "qwen3.5-moe");
    const SafetensorsFile file = weights();
    const auto get = [&](const std::string& name) {
      return file.tensors.at("model.layers.1.linear_attn." + name);
    };
    std::vector<Heads> parts;  // q, k, v, z, b, a
    if (grouped) {
      // transformers: of each key head its query, its key, the values and the gates of three heads; b and a.
      const std::int64_t values = kValues / kKeyHeads;
      const std::int64_t group = 2 * kKeyDim + 2 * values;
      const auto of_groups = [&](const std::string& name, std::int64_t stride, std::int64_t first,
                                 std::int64_t count) {
        parts.push_back({stacked({rows(get(name), first, count), rows(get(name), stride + first, count)})});
      };
      of_groups("in_proj_qkvz.weight", group, 0, kKeyDim);
      of_groups("in_proj_qkvz.weight", group, kKeyDim, kKeyDim);
      of_groups("in_proj_qkvz.weight", group, 2 * kKeyDim, values);
      of_groups("in_proj_qkvz.weight", group, 2 * kKeyDim + values, values);
      of_groups("in_proj_ba.weight", 6, 0, 3);
      of_groups("in_proj_ba.weight", 6, 3, 3);
    } else {
      const Tensor qkv = get("in_proj_qkv.weight");
      parts = {{rows(qkv, 0, kQueries)},  {rows(qkv, kQueries, kQueries)}, {rows(qkv, 2 * kQueries, kValues)},
               {get("in_proj_z.weight")}, {get("in_proj_b.weight")},       {get("in_proj_a.weight")}};
    }
    const std::vector<SafetensorsFile> shards = converted("megatron:(attn:d1p1t2c1|ffn:d1p1t1e2)", 2);
    for (std::int64_t rank = 0; rank < 2; ++rank) {
      SCOPED_TRACE(rank);
      const auto held = [&](const std::string& name) {
        return shards.at(static_cast<std::size_t>(rank))
            .tensors.at("decoder.layers.1.self_attention." + name);
      };
      std::vector<Tensor> projected;
      for (const Heads& part : parts) projected.push_back(part.of_rank(rank, 2));
      EXPECT_EQ(held("in_proj.weight"), stacked(projected));
      EXPECT_EQ(held("in_proj.layer_norm_weight"), file.tensors.at("model.layers.1.input_layernorm.weight"));
      const Tensor conv = get("conv1d.weight");
      EXPECT_EQ(held("conv1d.weight"), stacked({Heads{rows(conv, 0, kQueries)}.of_rank(rank, 2),
                                                Heads{rows(conv, kQueries, kQueries)}.of_rank(rank, 2),
                                                Heads{rows(conv, 2 * kQueries, kValues)}.of_rank(rank, 2)}));
      EXPECT_EQ(held("A_log"), Heads{get("A_log")}.of_rank(rank, 2));
      EXPECT_EQ(held("dt_bias"), Heads{get("dt_bias")}.of_rank(rank, 2));
      EXPECT_EQ(held("out_proj.weight"), columns(get("out_proj.weight"), rank * kValues / 2, kValues / 2));
      const Tensor norm = widened(get("norm.weight"));
      const Tensor less = held("out_norm.weight");
      EXPECT_EQ(less.dtype, "F32");
      ASSERT_EQ(less.data.size(), norm.data.size());
      for (std::size_t i = 0; i < norm.data.size(); i += 4) {
        float of_model = 0;
        float of_trainer = 0;
        std::memcpy(&of_model, norm.data.data() + i, 4);
        std::memcpy(&of_trainer, less.data.data() + i, 4);
        EXPECT_EQ(of_trainer, of_model - 1);
      }
    }
    std::filesystem::remove_all(source_);
    std::filesystem::remove_all(dir_ / "converted");
  }
}

TEST_F(TrainerFamilies, ANormThatIsHeldLessOne) {
  make_source("qwen3.5");
  const std::string shards = dir_ / "converted";
  const Words layout{"--trainer-alloc", "megatron:t1"};
  EXPECT_TRUE(done(
      run_plain(Words{"convert", "--source", source_, "--to", "megatron", "--output", shards} + layout)));
  const std::string path = shards + "/trainer-0.safetensors";
  SafetensorsFile file = SafetensorsFile::read(path);
  Tensor& norm = file.tensors.at("decoder.layers.0.self_attention.out_norm.weight");
  // As trainers in bfloat16 have it. Halfway between two, to the even one: 1 + 2^-8, 1 + 3 · 2^-8, 1 - 2^-9.
  const std::vector<std::pair<std::uint16_t, std::uint16_t>> pairs{
      {0x0000, 0x3f80}, {0x8000, 0x3f80}, {0xbf80, 0x0000}, {0x3b80, 0x3f80}, {0x3b81, 0x3f81},
      {0x3c40, 0x3f82}, {0xbb00, 0x3f80}, {0xbb01, 0x3f7f}, {0x3f80, 0x4000}, {0xc000, 0xbf80},
      {0x0001, 0x3f80}, {0x4380, 0x4380}, {0x437f, 0x4380}, {0x7f80, 0x7f80}, {0x7f7f, 0x7f7f},
      {0xbf00, 0x3f00}, {0xbe80, 0x3f40}, {0x3dcd, 0x3f8d}, {0xff80, 0xff80}, {0x3eaa, 0x3faa},
      {0x3f2a, 0x3fd5}, {0x4049, 0x4084}, {0xbf7f, 0x3b80}, {0xc080, 0xc040}};
  std::string held;
  std::string wanted;
  for (const auto& [less, value] : pairs) {
    held.append(std::bit_cast<std::array<char, 2>>(less).data(), 2);
    wanted.append(std::bit_cast<std::array<char, 2>>(value).data(), 2);
  }
  norm = {"BF16", {24}, held};
  file.write(path);
  EXPECT_TRUE(done(run_job(
      3,
      Words{"sync", "--source", shards, "--inference", "tp=2", "--sink", "safetensors:" + sink_} + layout)));
  for (const char* rank : {"/rank-0.safetensors", "/rank-1.safetensors"}) {
    EXPECT_EQ(SafetensorsFile::read(sink_ + rank).tensors.at("model.layers.0.linear_attn.norm.weight").data,
              wanted);
  }
  EXPECT_TRUE(done(run_plain(Words{"verify", sink_, "--source", shards} + layout)));
  // Of trainers that keep it as the model has it, it is what is there.
  const Words plain{"--trainer-linear-attention", "cut-plain"};
  EXPECT_TRUE(done(run_job(3, Words{"sync", "--source", shards, "--inference", "tp=2", "--sink",
                                    "safetensors:" + std::string(dir_ / "plain")} +
                                  layout + plain)));
  EXPECT_EQ(SafetensorsFile::read(dir_ / "plain/rank-1.safetensors")
                .tensors.at("model.layers.0.linear_attn.norm.weight")
                .data,
            held);
  // One bit of it is found: of -1/2, which counts.
  flip_bit(path, get_file(path).find(held) + 30);
  EXPECT_TRUE(refused(run_plain(Words{"verify", sink_, "--source", shards} + layout), 66,
                      {"model.layers.0.linear_attn.norm.weight"}));
}

TEST_F(TrainerFamilies, WhatTrainersThatRunHaveInMemory) {
  make_source("qwen3.5");
  converted("megatron:t2", 2);
  const std::string shards = dir_ / "converted";
  for (const int rank : {0, 1}) {
    const std::string path = fmt::format("{}/trainer-{}.safetensors", shards, rank);
    SafetensorsFile file = SafetensorsFile::read(path);
    for (auto& [name, tensor] : file.tensors) {
      if (!name.ends_with(".out_norm.weight")) continue;
      // As trainers in bfloat16 have it: live memory is not rounded.
      tensor.dtype = "BF16";
      std::string upper;
      for (std::size_t at = 0; at < tensor.data.size(); at += 4) upper += tensor.data.substr(at + 2, 2);
      tensor.data = upper;
    }
    file.write(path);
  }
  const Words layout{"--inference", "tp=2", "--trainer-alloc", "megatron:t2"};
  EXPECT_TRUE(done(sync(dir_ / "from-files", Words{"--source", shards} + layout, 2)));
  publish(shards, 2);
  EXPECT_TRUE(
      done(sync(dir_ / "from-memory", Words{"--source", "live:" + folder_, "--model", config_} + layout, 2)));
  EXPECT_TRUE(shard_contents(dir_ / "from-memory") == shard_contents(dir_ / "from-files"));
}

TEST_F(TrainerFamilies, ExpertsThatLieTransposedInMemoryAreRefused) {
  make_source("gpt-oss");
  converted("megatron:d1", 1);
  publish(dir_ / "converted", 1);
  EXPECT_TRUE(refused(sync(sink_,
                           {"--source", "live:" + folder_, "--model", config_, "--inference", "tp=2",
                            "--trainer-alloc", "megatron:d1"},
                           1),
                      65, {"trainer-0.json", "mlp.experts.linear_fc1.weight0", "transposed", "export map"}));
}

TEST_F(TrainerFamilies, ANormThatWouldNotComeBackIsRefused) {
  make_source("qwen3.5");
  SafetensorsFile file = weights();
  // 2^-18 · 129/128: less one it has more digits than a float32.
  file.tensors.at("model.layers.2.linear_attn.norm.weight").data.replace(6, 2, std::string("\x81\x36", 2));
  file.write(source_ + "/model.safetensors");
  const Words convert{"convert",  "--source",      source_,           "--to",       "megatron",
                      "--output", dir_ / "shards", "--trainer-alloc", "megatron:t2"};
  EXPECT_TRUE(refused(run_plain(convert), 65,
                      {"model.layers.2.linear_attn.norm.weight", "element 3", "less one",
                       "--trainer-linear-attention whole"}));
  EXPECT_TRUE(done(run_plain(convert + Words{"--trainer-linear-attention", "whole"})));
}

TEST_F(TrainerFamilies, ShardsOfBothFormsAreRefused) {
  make_source("qwen3.5");
  for (const char* form : {"cut", "whole"}) {
    EXPECT_TRUE(done(run_plain({"convert", "--source", source_, "--to", "megatron", "--output", dir_ / form,
                                "--trainer-alloc", "megatron:t2", "--trainer-linear-attention", form})));
  }
  // The labels of one conversion are alike: without them a file is taken at its name.
  for (const char* form : {"cut", "whole"}) {
    for (const char* rank : {"/trainer-0.safetensors", "/trainer-1.safetensors"}) {
      const std::string path = dir_ / form + rank;
      SafetensorsFile::read(path).write(path);
    }
  }
  std::filesystem::copy_file(dir_ / "whole/trainer-1.safetensors", dir_ / "cut/trainer-1.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(refused(run_plain({"convert", "--source", dir_ / "cut", "--to", "hf", "--output", dir_ / "back",
                                 "--trainer-alloc", "megatron:t2"}),
                      65, {"trainer-0.safetensors", "linear_attn", "is missing", "self_attention.A_log"}));
}

TEST_F(TrainerFamilies, GptOss) {
  make_source("gpt-oss");
  expect_trainers("megatron:(attn:d1p2t2c1|ffn:d1p2t1e2)", 4);
  expect_trainers("megatron:(attn:d3p1t1c1|ffn:d1p1t1e3)", 3);
  const SafetensorsFile file = weights();
  const std::vector<SafetensorsFile> shards = converted("megatron:(attn:d1p1t2c1|ffn:d1p1t1e2)", 2);
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    const auto held = [&](const std::string& name) {
      return shards.at(static_cast<std::size_t>(rank)).tensors.at("decoder.layers.1." + name);
    };
    const auto get = [&](const std::string& name) { return file.tensors.at("model.layers.1." + name); };
    EXPECT_EQ(held("self_attention.core_attention.softmax_offset"),
              rows(get("self_attn.sinks"), 2 * rank, 2));
    EXPECT_EQ(held("self_attention.linear_proj.bias"), get("self_attn.o_proj.bias"));
    EXPECT_EQ(held("mlp.router.weight"), get("mlp.router.weight"));
    EXPECT_EQ(held("mlp.router.bias"), get("mlp.router.bias"));
    for (std::int64_t i = 0; i < 3; ++i) {
      const std::int64_t expert = 3 * rank + i;
      const auto of_expert = [&](const std::string& name) {
        Tensor one = rows(get("mlp.experts." + name), expert, 1);
        one.shape.erase(one.shape.begin());
        return one;
      };
      // Columns of gate and up in turn become rows of gate above rows of up.
      const Tensor fused = transposed(of_expert("gate_up_proj"));
      EXPECT_EQ(held(fmt::format("mlp.experts.linear_fc1.weight{}", i)),
                stacked({every_second(fused, 0), every_second(fused, 1)}));
      const Tensor bias = of_expert("gate_up_proj_bias");
      EXPECT_EQ(held(fmt::format("mlp.experts.linear_fc1.bias{}", i)),
                stacked({every_second(bias, 0), every_second(bias, 1)}));
      EXPECT_EQ(held(fmt::format("mlp.experts.linear_fc2.weight{}", i)), transposed(of_expert("down_proj")));
      EXPECT_EQ(held(fmt::format("mlp.experts.linear_fc2.bias{}", i)), of_expert("down_proj_bias"));
    }
  }
  EXPECT_TRUE(refused(run_plain({"plan", "--source", source_, "--inference", "tp=2", "--trainer-alloc",
                                 "megatron:(attn:t2|ffn:t2)"}),
                      64, {"--trainer-alloc", "model.layers.0.mlp.experts", "ffn:t1"}));
}

TEST_F(TrainerFamilies, Glm4) {
  make_source("glm4");
  expect_trainers("megatron:d1p2t2", 4);
  const SafetensorsFile file = weights();
  const std::vector<SafetensorsFile> shards = converted("megatron:t2", 2);
  const Tensor fused = file.tensors.at("model.layers.0.mlp.gate_up_proj.weight");
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    const auto& held = shards.at(static_cast<std::size_t>(rank)).tensors;
    const std::string at = "decoder.layers.0.";
    EXPECT_EQ(held.at(at + "mlp.linear_fc1.weight"),
              stacked({rows(fused, 76 * rank, 76), rows(fused, 152 + 76 * rank, 76)}));
    for (const std::string name : {"post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"}) {
      EXPECT_EQ(held.at(at + name), file.tensors.at("model.layers.0." + name));
    }
  }
}

TEST_F(TrainerFamilies, Gemma4) {
  make_source("gemma4-dense");
  expect_trainers("megatron:d2", 2);
  std::filesystem::remove_all(source_);
  make_source("gemma4-moe");
  expect_trainers("megatron:(attn:d1p2t2c1|ffn:d1p2t1e2)", 4);
  expect_trainers("megatron:(attn:d2p1t1c1|ffn:d1p1t2e1)", 2);
  const SafetensorsFile file = weights();
  const std::vector<SafetensorsFile> shards = converted("megatron:(attn:d1p1t2c1|ffn:d1p1t1e2)", 2);
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    const auto held = [&](const std::string& name) {
      return shards.at(static_cast<std::size_t>(rank)).tensors.at("decoder.layers.1." + name);
    };
    const auto get = [&](const std::string& name) { return file.tensors.at("model.layers.1." + name); };
    // Of a group two heads of 32 and the key's, which is the value's, too.
    const Tensor key = rows(get("self_attn.k_proj.weight"), 32 * rank, 32);
    EXPECT_EQ(held("self_attention.linear_qkv.weight"),
              stacked({rows(get("self_attn.q_proj.weight"), 64 * rank, 64), key, key}));
    EXPECT_EQ(held("mlp.router.scale"), get("router.scale"));
    EXPECT_EQ(held("dense_mlp.linear_fc1.layer_norm_weight"), get("pre_feedforward_layernorm.weight"));
    EXPECT_EQ(held("dense_mlp.linear_fc1.weight"), stacked({rows(get("mlp.gate_proj.weight"), 44 * rank, 44),
                                                            rows(get("mlp.up_proj.weight"), 44 * rank, 44)}));
    for (std::int64_t i = 0; i < 3; ++i) {
      Tensor fused = rows(get("experts.gate_up_proj"), 3 * rank + i, 1);
      fused.shape.erase(fused.shape.begin());
      EXPECT_EQ(held(fmt::format("mlp.experts.linear_fc1.weight{}", i)), fused);
    }
  }
  // A key may be half on a rank, and its value on another.
  EXPECT_TRUE(refused(
      run_plain({"plan", "--source", source_, "--inference", "tp=1", "--trainer-alloc", "megatron:t4"}), 64,
      {"--trainer-alloc", "t=4", "kv heads of model.layers.1.self_attn.k_proj"}));
}

TEST_F(TrainerFamilies, Gemma4ThatSharesKeysIsRefused) {
  make_source("gemma4-ple");
  const Words words{"Gemma4ForCausalLM", "--trainer-alloc", "hidden_size_per_layer_input",
                    "Hugging Face's names"};
  const Words layout{"--source", source_, "--trainer-alloc", "megatron:d1"};
  EXPECT_TRUE(refused(run_plain(Words{"plan", "--inference", "tp=1"} + layout), 64, words));
  EXPECT_TRUE(
      refused(run_plain(Words{"convert", "--to", "megatron", "--output", dir_ / "x"} + layout), 64, words));
  EXPECT_TRUE(
      refused(run_job(2, Words{"sync", "--inference", "tp=1", "--sink", "safetensors:" + sink_} + layout), 64,
              words));
}

}  // namespace
}  // namespace weightcast::test_support
