// --mtp and --target: draft layers with their model, and as a model of their own.

#include <map>
#include <set>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class DraftCommands : public CliTest {
 protected:
  /// A checkpoint of three layers and one for drafts.
  std::string synthetic(const std::string& model = "glm4-moe") const {
    const std::string folder = dir_ / model;
    EXPECT_TRUE(done(run_plain({"synth", "--model", config(model), "--mtp", "include", "--output", folder})));
    return folder;
  }

  static std::string config(const std::string& model) {
    return std::string(kData) + "/vllm/" + model + "/config.json";
  }

  Outcome sync(const std::string& source, const Words& more) const {
    return run_job(
        3, Words{"sync", "--source", source, "--inference", "tp=2", "--sink", "safetensors:" + sink_} + more);
  }

  std::set<std::string> names_in_shard() const {
    std::set<std::string> names;
    for (const auto& [name, tensor] : SafetensorsFile::read(sink_ + "/rank-1.safetensors").tensors)
      names.insert(name);
    return names;
  }

  Outcome verify(const std::string& source, const Words& more) const {
    return run_plain(Words{"verify", sink_, "--source", source} + more);
  }
};

TEST_F(DraftCommands, AreLeftOutAndTheReportSaysSo) {
  const std::string source = synthetic();
  const std::string json = dir_ / "report.json";
  const Outcome outcome = sync(source, {"--json", json});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"# unsent  of the source ", "model.layers.3.* ("}));
  const auto report = read_json(json);
  EXPECT_EQ(report.at("partial"), nullptr);
  EXPECT_GT(report.at("left_out").at("tensors"), 10);
  EXPECT_FALSE(names_in_shard().contains("model.layers.3.eh_proj.weight"));
}

TEST_F(DraftCommands, AreSentWithTheModel) {
  const std::string source = synthetic();
  const Words include{"--mtp", "include"};
  const Outcome outcome = sync(source, include);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"with draft layers"}));
  EXPECT_EQ(outcome.out.find("unsent"), std::string::npos);
  const std::set<std::string> names = names_in_shard();
  EXPECT_TRUE(names.contains("model.layers.3.eh_proj.weight"));
  EXPECT_TRUE(names.contains("model.layers.2.mlp.experts.w13_weight"));
  EXPECT_TRUE(names.contains("model.layers.3.mlp.experts.w13_weight"));
  EXPECT_TRUE(done(verify(source, include)));
  EXPECT_TRUE(refused(verify(source, {}), 65, {"no parameter of this rank"}));
  EXPECT_TRUE(done(verify(source, include + Words{"--include", "model.layers.3.*"})));
}

TEST_F(DraftCommands, RepeatTheModelsEmbeddingAndHead) {
  const std::string source = synthetic();
  const std::string path = source + "/model.safetensors";
  SafetensorsFile file = SafetensorsFile::read(path);
  const std::string head = "model.layers.3.shared_head.head.weight";
  file.tensors["model.layers.3.embed_tokens.weight"] = file.tensors.at("model.embed_tokens.weight");
  file.tensors[head] = file.tensors.at("lm_head.weight");
  file.write(path);
  const Words include{"--mtp", "include"};
  EXPECT_TRUE(done(sync(source, include)));
  file.tensors[head].data.back() ^= 1;
  file.write(path);
  EXPECT_TRUE(refused(sync(source, include), 65,
                      {head + " differs (from row", "from lm_head.weight", "for draft layers, too",
                       "--exclude '" + head + "'"}));
  EXPECT_TRUE(done(sync(source, include + Words{"--exclude", head})));
  // Of layers that are not sent nothing is compared.
  EXPECT_TRUE(done(sync(source, {})));
}

TEST_F(DraftCommands, AreAModelOfTheirOwn) {
  for (const auto& [model, name] : std::map<std::string, std::string>{
           {"glm4-moe", "model.layers.3.mtp_block.mlp.experts.routed_experts.w13_weight"},
           {"qwen3.5-moe", "model.layers.0.self_attn.qkv_proj.weight"}}) {
    const std::string source = synthetic(model);
    const Words draft{"--target", "draft", "--engine", "vllm"};
    const Outcome outcome = sync(source, draft);
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out, {"its draft model", "# unsent  of the source"}));
    const std::set<std::string> names = names_in_shard();
    EXPECT_TRUE(names.contains(name)) << model;
    EXPECT_TRUE(names.contains("model.embed_tokens.weight"));
    EXPECT_FALSE(names.contains("model.layers.1.input_layernorm.weight"));
    EXPECT_TRUE(done(verify(source, {"--target", "draft"})));
  }
}

TEST_F(DraftCommands, WhatIsRefused) {
  const Words plan{"plan", "--model", config("glm4-moe")};
  EXPECT_TRUE(refused(run_plain(plan + Words{"--target", "draft", "--mtp", "include"}), 64,
                      {"--mtp", "--target draft", "leave one out"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--mtp", "yes"}), 64, {"--mtp yes", "exclude, include"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--model", config("llama"), "--mtp", "include"}), 64,
                      {"--mtp include", "no draft layers"}));
  EXPECT_TRUE(
      refused(run_plain({"plan", "--landing", "map.json", "--mtp", "include"}), 64, {"--mtp", "--landing"}));
  EXPECT_TRUE(refused(run_plain(plan + Words{"--mtp", "include", "--trainer-alloc", "megatron:d1p1t1"}), 64,
                      {"draft layers", "--mtp"}));
  // A checkpoint that has none.
  EXPECT_TRUE(done(run_plain({"synth", "--model", config("glm4-moe"), "--output", dir_ / "without"})));
  EXPECT_TRUE(refused(sync(dir_ / "without", {"--mtp", "include"}), 65, {"model.layers.3.", "missing"}));
}

}  // namespace
}  // namespace weightcast::test_support
