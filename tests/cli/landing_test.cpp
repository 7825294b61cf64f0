// Jobs and commands with a landing map. The maps here are what the model's own family says, written down.

#include "cli/cli.hpp"
#include "model/family.hpp"
#include "support/landing_json.hpp"

namespace weightcast::test_support {
namespace {

class Landing : public CliTest {
 protected:
  void SetUp() override { write(map()); }

  /// The trained model's, of vLLM with tp=2, ep=2.
  static nlohmann::json map() {
    EngineLayout layout;
    layout.engine = Engine::kVllm;
    layout.tp = 2;
    layout.ep = 2;
    const std::string path = trained(0) + "/config.json";
    return landing_json(*make_family(ModelConfig(get_file(path), path)), layout);
  }

  void write(const nlohmann::json& map) const { put_file(file_, map.dump()); }

  Words sync(const Words& layout, const std::string& sink) const {
    return Words{"sync", "--source", trained(0), "--sink", "hdf5:" + sink, "--weight-version", "3"} + layout;
  }
  Words landed(const Words& more = {}) const { return Words{"--landing", file_} + more; }
  Outcome verify(const std::string& shards, const Words& more) const {
    return run_plain(Words{"verify", shards, "--source", trained(0)} + more);
  }

  std::string file_ = dir_ / "map.json";
};

TEST_F(Landing, ShardsAreThoseOfTheFamilyByteForByte) {
  const std::string plain = dir_ / "plain";
  EXPECT_TRUE(done(run_job(3, sync({"--engine", "vllm", "--inference", "tp=2,ep=2"}, plain))));
  // The layout is the map's.
  EXPECT_TRUE(done(run_job(3, sync(landed(), sink_))));
  EXPECT_EQ(shard_contents(sink_), shard_contents(plain));
  EXPECT_TRUE(done(verify(sink_, landed())));
  // Which map it was is written down.
  EXPECT_TRUE(refused(verify(sink_, {}), 64, {sink_, "landing map", "--landing"}));
  EXPECT_TRUE(refused(verify(plain, landed()), 64, {"--landing " + file_, plain, "leave it out"}));
  nlohmann::json other = map();
  other["engine_version"] = other["made_for"]["engine_version"] = "0.33.0";
  write(other);
  EXPECT_TRUE(refused(verify(sink_, landed()), 64, {"--landing " + file_, sink_, "name that one"}));
}

TEST_F(Landing, AChangedBitIsFound) {
  EXPECT_TRUE(done(run_job(3, sync(landed(), sink_))));
  const auto checkpoint = SafetensorsFile::read(trained(0) + "/model.safetensors");
  const std::string path = sink_ + "/rank-1.h5";
  const std::string tensor = "model.layers.0.mlp.experts.7.up_proj.weight";
  const std::size_t at = get_file(path).find(checkpoint.tensors.at(tensor).data.substr(0, 64));
  ASSERT_NE(at, std::string::npos);
  flip_bit(path, at);
  EXPECT_TRUE(refused(verify(sink_, landed()), 66, {path, tensor, "routed_experts.w13_weight"}));
}

TEST_F(Landing, FilesHaveTheLoadersTensorsAsTheyAre) {
  const std::string name = "model.norm.weight";
  nlohmann::json computed = map();
  for (nlohmann::json& rank : computed["ranks"]) {
    for (nlohmann::json& parameter : rank["parameters"]) {
      if (parameter["name"] != name) continue;
      const nlohmann::json tensor = parameter["parts"][0][0];
      parameter.erase("parts");
      parameter["dtype"] = "F32";
      rank["loader"] = {{{"tensor", tensor}, {"parameters", {name}}, {"why", "aten.exp computes"}}};
    }
  }
  write(computed);
  EXPECT_TRUE(done(run_job(3, sync(landed(), sink_))));
  EXPECT_TRUE(done(verify(sink_, landed())));
  const auto checkpoint = SafetensorsFile::read(trained(0) + "/model.safetensors");
  const std::string path = sink_ + "/rank-1.h5";
  const std::size_t at = get_file(path).find(checkpoint.tensors.at(name).data.substr(0, 64));
  ASSERT_NE(at, std::string::npos);
  flip_bit(path, at);
  EXPECT_TRUE(refused(verify(sink_, landed()), 66, {path, name}));
}

TEST_F(Landing, NeedsNoConfig) {
  const std::string alone = dir_ / "alone";
  std::filesystem::create_directory(alone);
  std::filesystem::copy_file(trained(0) + "/model.safetensors", alone + "/model.safetensors");
  EXPECT_TRUE(done(run_job(3, {"sync", "--source", alone, "--landing", file_, "--sink", "hdf5:" + sink_})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", alone, "--landing", file_})));
  const Outcome plan = run_plain({"plan", "--landing", file_, "--trainers", "2"});
  EXPECT_TRUE(done(plan));
  EXPECT_TRUE(has(plan.out, {"TestForCausalLM", "map.json", "tp 2, ep 2", "names of vllm, as landing map"}));
  EXPECT_TRUE(done(run_job(3, {"bench", "--landing", file_, "--iterations", "1"})));
  // A model that no family describes is what the map says.
  put_file(alone + "/config.json", R"({"architectures": ["OtherForCausalLM"], "model_type": "other"})");
  EXPECT_TRUE(done(run_plain({"plan", "--source", alone, "--landing", file_})));
  EXPECT_TRUE(refused(run_plain({"plan", "--source", alone}), 65, {"OtherForCausalLM"}));
}

TEST_F(Landing, AnotherLayoutIsRefused) {
  const auto plan = [&](const Words& more) {
    return run_plain(Words{"plan", "--source", trained(0)} + landed(more));
  };
  EXPECT_TRUE(done(plan({"--inference", "tp=2,ep=2,replicas=3"})));
  EXPECT_TRUE(done(plan({"--inference-alloc", "vllm:d2t2e2"})));
  for (const Words& words : std::vector<Words>{{"--inference", "tp=2"},
                                               {"--inference", "tp=4,ep=2"},
                                               {"--inference", "tp=2,ep=2,pp=2"},
                                               {"--inference-alloc", "hf"},
                                               {"--inference-alloc", "sglang:t2"},
                                               {"--inference", "tp=2,ep=2", "--engine", "sglang"}}) {
    EXPECT_TRUE(refused(plan(words), 64, {file_, "vllm tp=2,ep=2,pp=1"}));
  }
  EXPECT_TRUE(refused(plan({"--engine", "sglang"}), 64, {"sglang", file_}));
  EXPECT_TRUE(refused(plan({"--quantize", "fp8-block"}), 64, {"--quantize", "--landing"}));
  EXPECT_TRUE(refused(plan({"--moe-layout", "cutlass"}), 64, {"--moe-layout cutlass", "vllm-cpu"}));
  EXPECT_TRUE(refused(plan({"--layers", "2"}), 64, {"--layers", "--landing"}));
  EXPECT_TRUE(refused(plan({"--inference-stage-layers", "1,2"}), 64, {"--inference-stage-layers"}));
  EXPECT_TRUE(refused(plan({"--trainer-alloc", "megatron:t2"}), 64, {"--trainer-alloc", "Hugging Face"}));
  EXPECT_TRUE(refused(run_plain({"bench", "--layouts", "--landing", file_}), 64, {"--landing", "--layouts"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--landing", ""}), 64, {"--landing", "empty"}));
}

TEST_F(Landing, AMapThatContradictsTheConfigIsRefused) {
  nlohmann::json changed = map();
  for (nlohmann::json& parameter : changed["ranks"][1]["parameters"]) {
    if (parameter["name"] != "model.layers.1.self_attn.qkv_proj.weight") continue;
    std::swap(parameter["parts"][1][0], parameter["parts"][2][0]);
  }
  write(changed);
  EXPECT_TRUE(refused(run_job(3, sync(landed(), sink_)), 65,
                      {file_, "rank 1", "qkv_proj", "model.layers.1.self_attn.v_proj.weight",
                       "model.layers.1.self_attn.k_proj.weight"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
}

TEST_F(Landing, AWrongMapIsOneLineOfOneRank) {
  nlohmann::json wrong = map();
  wrong["ranks"][0]["parameters"][0]["parts"][0][2] = 1;
  write(wrong);
  const Words words{file_, "rank 0", "embed_tokens", "row 1, column 0"};
  EXPECT_TRUE(refused(run_job(3, sync(landed(), sink_)), 65, words));
  EXPECT_TRUE(refused(run_plain({"inspect", file_}), 65, words));
  EXPECT_TRUE(refused(run_plain({"plan", "--landing", file_}), 65, words));
  put_file(file_, "{\"landing\": 1,");
  EXPECT_TRUE(refused(run_plain({"inspect", file_}), 65, {file_, "cut off"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--landing", dir_ / "none.json"}), 74, {"--landing", "none.json"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--landing", trained(0) + "/model.safetensors"}), 65,
                      {"model.safetensors"}));
  EXPECT_TRUE(
      refused(run_plain({"plan", "--landing", trained(0) + "/config.json"}), 65, {"'landing' is missing"}));
}

TEST_F(Landing, ACheckpointThatTheMapDoesNotKnowIsRefused) {
  nlohmann::json other = map();
  other["tensors"][1]["name"] = "model.layers.0.other.weight";
  write(other);
  const std::string alone = dir_ / "alone";
  std::filesystem::create_directory(alone);
  std::filesystem::copy_file(trained(0) + "/model.safetensors", alone + "/model.safetensors");
  EXPECT_TRUE(refused(run_plain({"plan", "--source", alone, "--landing", file_}), 65,
                      {alone, "model.layers.0.other.weight", "missing"}));
}

TEST_F(Landing, NamesAreTheMapsOwn) {
  // As in a model that sees, too, whose language model is a part: some of its layers no rank reads.
  const auto inner = [](const std::string& name) {
    return name.starts_with("model.") ? "model.language_model." + name.substr(6) : name;
  };
  const std::string alone = dir_ / "alone";
  std::filesystem::create_directory(alone);
  const SafetensorsFile trained_file = SafetensorsFile::read(trained(0) + "/model.safetensors");
  SafetensorsFile renamed;
  for (const auto& [name, tensor] : trained_file.tensors) renamed.tensors[inner(name)] = tensor;
  renamed.tensors["model.language_model.layers.3.input_layernorm.weight"] =
      renamed.tensors.at("model.language_model.layers.2.input_layernorm.weight");
  renamed.write(alone + "/model.safetensors");
  nlohmann::json names = map();
  for (nlohmann::json& tensor : names["tensors"]) tensor["name"] = inner(tensor["name"]);
  for (nlohmann::json& rank : names["ranks"]) rank["skipped"].push_back(names["tensors"].size());
  names["tensors"].push_back({{"name", "model.language_model.layers.3.input_layernorm.weight"},
                              {"dtype", "BF16"},
                              {"shape", {128}}});
  write(names);
  EXPECT_TRUE(done(run_job(3, {"sync", "--source", alone, "--landing", file_, "--sink", "hdf5:" + sink_})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", alone, "--landing", file_})));
}

TEST_F(Landing, RowsThatLandOnNoRankAreNamed) {
  // The map of an engine whose config says 2 heads of keys and values, and whose checkpoint has 4.
  const std::string path = std::string(kData) + "/landing_maps/mimo-v2-flash_tp2.json";
  const Words words{path, "of 4 tensors elements land on no rank",
                    "rows 64..128, columns 0..80 of model.layers.1.self_attn.k_proj.weight [128, 80]"};
  const Outcome outcome = run_plain({"inspect", path});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.err, words));
  const Outcome whole = run_plain({"inspect", std::string(kData) + "/landing_maps/gpt-oss_tp2ep.json"});
  EXPECT_TRUE(done(whole));
  EXPECT_EQ(whole.err, "");
  // Plan and verify read it alike; here both lack what follows.
  for (const Words& command : {Words{"plan"}, Words{"sync", "--dry-run"}}) {
    EXPECT_TRUE(has(run_plain(command + Words{"--source", trained(0), "--landing", path}).err, words));
  }
}

TEST_F(Landing, InspectSumsItUp) {
  nlohmann::json with_left = map();
  with_left["ranks"][0]["left"] = {
      {{"name", "own.table"}, {"shape", {6}}, {"dtype", "int32"}, {"why", "its own"}}};
  write(with_left);
  const std::string report = dir_ / "report.json";
  const Outcome outcome = run_plain({"inspect", file_, "--json", report});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(
      has(outcome.out, {"landing map of vllm 0.32.0", "TestForCausalLM", "tp=2,ep=2,pp=1", "skipped"}));
  const auto json = read_json(report);
  EXPECT_EQ(json.at("tp"), 2);
  ASSERT_EQ(json.at("ranks").size(), 2);
  EXPECT_EQ(json.at("ranks").at(0).at("left").at(0), "own.table");
  EXPECT_EQ(json.at("ranks").at(0).at("loader"), 0);
  EXPECT_GT(json.at("ranks").at(0).at("landed_bytes"), 100'000);
}

}  // namespace
}  // namespace weightcast::test_support
