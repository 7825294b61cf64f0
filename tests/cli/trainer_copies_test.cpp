// convert: a checkpoint to trainers' shards and back. verify: an engine's shards against trainers' shards.

#include <cstring>
#include <set>

#include "cli/trainers.hpp"
#include "storage/attributes.hpp"
#include "storage/writer.hpp"

namespace weightcast::test_support {
namespace {

/// A matrix of one-byte elements.
SafetensorsFile::Tensor bytes(std::vector<std::int64_t> shape, const std::string& data) {
  return {"U8", std::move(shape), data};
}

TEST(MegatronShards, OfAModelThatOneCanReadOff) {
  SafetensorsFile whole;
  whole.tensors = {{"model.embed_tokens.weight", bytes({3, 1}, "abc")},
                   {"model.norm.weight", bytes({1}, "n")},
                   {"lm_head.weight", bytes({3, 1}, "xyz")},
                   {"model.layers.0.input_layernorm.weight", bytes({1}, "i")},
                   {"model.layers.0.self_attn.q_proj.weight", bytes({4, 1}, "0123")},
                   {"model.layers.0.self_attn.k_proj.weight", bytes({2, 1}, "kK")},
                   {"model.layers.0.self_attn.v_proj.weight", bytes({2, 1}, "vV")},
                   {"model.layers.0.self_attn.o_proj.weight", bytes({1, 4}, "opqr")},
                   {"model.layers.0.self_attn.q_norm.weight", bytes({1}, "s")},
                   {"model.layers.0.self_attn.k_norm.weight", bytes({1}, "t")},
                   {"model.layers.0.post_attention_layernorm.weight", bytes({1}, "j")},
                   {"model.layers.0.mlp.gate_proj.weight", bytes({4, 1}, "ghGH")},
                   {"model.layers.0.mlp.up_proj.weight", bytes({4, 1}, "uwUW")},
                   {"model.layers.0.mlp.down_proj.weight", bytes({1, 4}, "deDE")}};
  MegatronLayout layout;
  layout.t = 4;
  layout.vocabulary_rows = 8;
  layout.junk = '?';
  const auto shards = trainer_shards(whole, {{"num_hidden_layers", 1}, {"num_key_value_heads", 2}}, layout);
  const auto across = [&](const std::string& name) {
    std::string all;
    for (const SafetensorsFile& shard : shards) all += shard.tensors.at(name).data + " ";
    return all;
  };
  ASSERT_EQ(shards.size(), 4);
  EXPECT_EQ(shards[2].tensors.size(), 11);
  EXPECT_EQ(across("embedding.word_embeddings.weight"), "ab c? ?? ?? ");
  EXPECT_EQ(across("output_layer.weight"), "xy z? ?? ?? ");
  EXPECT_EQ(across("decoder.layers.0.self_attention.linear_qkv.weight"), "01 kv 23 KV ");
  EXPECT_EQ(across("decoder.layers.0.self_attention.linear_proj.weight"), "o p q r ");
  EXPECT_EQ(across("decoder.layers.0.mlp.linear_fc1.weight"), "gu hw GU HW ");
  EXPECT_EQ(across("decoder.layers.0.mlp.linear_fc2.weight"), "d e D E ");
  EXPECT_EQ(across("decoder.layers.0.mlp.linear_fc1.layer_norm_weight"), "j j j j ");
  EXPECT_EQ(across("decoder.final_layernorm.weight"), "n n n n ");
}

struct Copy {
  std::string model;
  MegatronLayout layout;
  std::string format;
};

/// What test listings show.
std::ostream& operator<<(std::ostream& out, const Copy& copy) {
  return out << copy.model << " " << allocation_of(copy.layout);
}

/// What `convert` writes: zeros in the padding, a true copy of a tied embedding.
MegatronLayout fresh(MegatronLayout layout) {
  layout.junk.reset();
  return layout;
}

std::vector<Copy> copies() {
  using L = MegatronLayout;
  return {
      {"DenseTied", L{.t = 2}, "safetensors"},
      {"DenseTied", L{.p = 2, .t = 4, .stage_layers = {2, 1}}, "hdf5"},
      {"DenseBias", L{.d = 2, .p = 2, .t = 1, .c = 2}, "safetensors"},
      {"DenseBias", L{.p = 2, .t = 2, .stage_layers = {1, 1, 1, 1}}, "safetensors"},
      {"DenseOdd", L{.t = 6}, "hdf5"},
      {"Qwen2Tied", L{.p = 2, .t = 2}, "safetensors"},
      {"Llama", L{.p = 2, .t = 2, .stage_layers = {1, 3}}, "hdf5"},
      {"Moe", L{.t = 4, .e = 4}, "safetensors"},
      {"Moe", L{.p = 3, .t = 2, .c = 2, .etp = 2, .e = 2}, "hdf5"},
      {"MoeTiedSparse", L{.d = 3, .p = 2, .t = 2, .etp = 2, .e = 3}, "safetensors"},
      {"MoeTiedSparse",
       L{.d = 2, .p = 3, .t = 1, .c = 2, .e = 2, .pp_before_dp = true, .stage_layers = {2, 1, 0, 0, 1, 2}},
       "hdf5"},
      {"MoeFourLayers", L{.p = 4, .t = 2, .c = 2, .etp = 2, .e = 2}, "safetensors"},
      {"MoeFourLayers", L{.t = 8, .etp = 4, .e = 2}, "safetensors"},
  };
}

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

class TrainerCopies : public CliTest, public ::testing::WithParamInterface<Copy> {
 protected:
  TrainerCopies() { make_checkpoint(small_model(GetParam().model), whole_); }

  Words allocation_words() const {
    return Words{"--trainer-alloc", allocation_of(GetParam().layout)} + trainer_words(GetParam().layout);
  }

  std::string whole_ = dir_ / "whole";
  std::string trainers_ = dir_ / "trainers";
};

TEST_P(TrainerCopies, AreWhatMegatronCutsAndGiveTheCheckpointBack) {
  const Copy& copy = GetParam();
  EXPECT_TRUE(done(run_plain(Words{"convert", "--source", whole_, "--to", "megatron", "--format", copy.format,
                                   "--output", trainers_} +
                             allocation_words())));
  const auto config = read_json(whole_ + "/config.json");
  EXPECT_EQ(read_json(trainers_ + "/config.json"), config);
  const SafetensorsFile original = SafetensorsFile::read(whole_ + "/model.safetensors");
  const auto expected = trainer_shards(original, config, fresh(copy.layout));
  const std::string extension = copy.format == "hdf5" ? ".h5" : ".safetensors";
  std::set<std::string> files{"config.json"};
  for (std::size_t rank = 0; rank < expected.size(); ++rank) {
    SCOPED_TRACE(rank);
    const std::string name = "trainer-" + std::to_string(rank) + extension;
    ASSERT_TRUE(std::filesystem::exists(trainers_ + "/" + name));
    EXPECT_TRUE(same(read_tensors(trainers_ + "/" + name).tensors, expected[rank].tensors));
    files.insert(name);
  }
  EXPECT_EQ(names_in(trainers_), files);

  const Words back = Words{"convert", "--source", trainers_, "--to", "hf"} + allocation_words();
  EXPECT_TRUE(done(run_plain(back + Words{"--output", dir_ / "back"})));
  EXPECT_TRUE(same(SafetensorsFile::read(dir_ / "back/model.safetensors").tensors, original.tensors));
  EXPECT_EQ(read_json(dir_ / "back/config.json"), config);
  EXPECT_TRUE(done(run_plain(back + Words{"--output", dir_ / "back.h5"})));
  EXPECT_TRUE(same(read_tensors(dir_ / "back.h5").tensors, original.tensors));
}

INSTANTIATE_TEST_SUITE_P(Layouts, TrainerCopies, ::testing::ValuesIn(copies()),
                         [](const auto& test) { return test.param.model + std::to_string(test.index); });

class TrainerFiles : public CliTest {
 protected:
  /// Four trainers of the real model.
  std::string convert(const std::string& name, const Words& more = {}, int step = 0) const {
    EXPECT_TRUE(done(run_plain(Words{"convert", "--source", trained(step), "--to", "megatron",
                                     "--trainer-alloc", kAllocation, "--output", dir_ / name} +
                               more)));
    return dir_ / name;
  }

  Outcome sync(const std::string& trainers, const Words& more = {}) const {
    return run_job(6, Words{"sync", "--source", trainers, "--inference-alloc", "sglang:t2e2",
                            "--trainer-alloc", kAllocation, "--sink", "hdf5:" + sink_} +
                          more);
  }
  Outcome verify(const std::string& trainers, const Words& more = {}) const {
    return run_plain(Words{"verify", sink_, "--source", trainers, "--trainer-alloc", kAllocation} + more);
  }

  static constexpr const char* kAllocation = "megatron:t2c2e2";
};

TEST_F(TrainerFiles, SayWhoseTheyAreAndOfWhatVersion) {
  const std::string safetensors = convert("safetensors", {"--weight-version", "42"});
  const std::string hdf5 = convert("hdf5", {"--weight-version", "42", "--format", "hdf5"});
  for (int rank = 0; rank < 4; ++rank) {
    const std::string name = "/trainer-" + std::to_string(rank);
    const std::string bytes = get_file(safetensors + name + ".safetensors");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    const auto metadata = nlohmann::json::parse(bytes.substr(sizeof length, length)).at("__metadata__");
    EXPECT_EQ(metadata.at("weightcast.trainer_rank"), std::to_string(rank));
    EXPECT_EQ(metadata.at("weightcast.weight_version"), "42");
    const Attributes attributes = read_attributes(hdf5 + name + ".h5");
    EXPECT_EQ(attributes.at("trainer_rank"), Attributes::mapped_type(std::int64_t{rank}));
    EXPECT_EQ(attributes.at("weight_version"), Attributes::mapped_type(std::int64_t{42}));
  }
}

TEST_F(TrainerFiles, VersionIsThatOfTheShards) {
  const std::string trainers = convert("trainers", {"--weight-version", "42"});
  EXPECT_TRUE(done(sync(trainers)));
  EXPECT_TRUE(done(verify(trainers)));
  EXPECT_TRUE(done(verify(trainers, {"--weight-version", "42"})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(0), "--weight-version", "42"})));
  EXPECT_TRUE(refused(verify(trainers, {"--weight-version", "43"}), 66, {sink_, "42", "43"}));
}

TEST_F(TrainerFiles, UpdatesOfOneSessionComeInAnyForm) {
  const std::string first = convert("first");
  const std::string second = convert("second", {"--format", "hdf5"}, 181);
  EXPECT_TRUE(done(run_job(
      6, {"sync", "--source", first, "--source", trained(1), "--source", second, "--inference-alloc",
          "sglang:t2", "--trainer-alloc", kAllocation, "--sink", "hdf5:" + (dir_ / "version-{version}")})));
  EXPECT_TRUE(done(run_plain({"verify", dir_ / "version-0", "--source", trained(0)})));
  EXPECT_TRUE(done(run_plain({"verify", dir_ / "version-1", "--source", trained(1)})));
  EXPECT_TRUE(done(run_plain({"verify", dir_ / "version-2", "--source", trained(181)})));
}

TEST_F(TrainerFiles, Float32IsCast) {
  const std::string trainers = convert("trainers");
  for (int rank = 0; rank < 4; ++rank) {
    const std::string path = trainers + "/trainer-" + std::to_string(rank) + ".safetensors";
    SafetensorsFile shard = SafetensorsFile::read(path);
    for (auto& [name, tensor] : shard.tensors) tensor = widened(tensor);
    shard.write(path);
  }
  const Outcome outcome = sync(trainers);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.err, {"float32", "cast to bfloat16"}));
  EXPECT_TRUE(done(verify(trainers)));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(0)})));
}

TEST_F(TrainerFiles, OneChangedBitIsFound) {
  const std::string trainers = convert("trainers");
  EXPECT_TRUE(done(sync(trainers)));
  const auto checkpoint = SafetensorsFile::read(trained(0) + "/model.safetensors");
  const auto flip = [&](const std::string& path, const std::string& tensor) {
    // Behind the bytes by which it is found, so that it can be flipped back.
    const std::size_t found = get_file(path).find(checkpoint.tensors.at(tensor).data.substr(0, 64));
    ASSERT_NE(found, std::string::npos);
    flip_bit(path, found + 70);
  };
  const std::string expert = "model.layers.1.mlp.experts.6.up_proj.weight";
  flip(sink_ + "/rank-1.h5", expert);
  EXPECT_TRUE(refused(verify(trainers), 66, {sink_ + "/rank-1.h5", expert}));
  flip(sink_ + "/rank-1.h5", expert);
  EXPECT_TRUE(done(verify(trainers)));
  // In every trainer that holds it, since any of them may be asked.
  const std::string head = "lm_head.weight";
  flip(trainers + "/trainer-0.safetensors", head);
  flip(trainers + "/trainer-2.safetensors", head);
  EXPECT_TRUE(refused(verify(trainers), 66, {sink_ + "/rank-0.h5", head}));
}

TEST_F(TrainerFiles, ConversionReplacesAnEarlierOne) {
  const std::string trainers = convert("trainers", {"--format", "hdf5"});
  EXPECT_TRUE(done(run_plain({"convert", "--source", trained(181), "--to", "megatron", "--trainer-alloc",
                              "megatron:t2", "--output", trainers})));
  EXPECT_EQ(names_in(trainers).size(), 3);
  EXPECT_TRUE(done(run_plain({"convert", "--source", trainers, "--to", "hf", "--trainer-alloc", "megatron:t2",
                              "--output", dir_ / "back"})));
  EXPECT_TRUE(same(SafetensorsFile::read(dir_ / "back/model.safetensors").tensors,
                   SafetensorsFile::read(trained(181) + "/model.safetensors").tensors));
}

}  // namespace
}  // namespace weightcast::test_support
