// --include and --exclude: which tensors they choose, what is said of it, and what is refused.

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class PartialCommands : public CliTest {
 protected:
  /// A job of three ranks that leaves everything in their memory.
  Outcome sync(const Words& more, const std::string& source = trained(181)) const {
    return run_job(3, Words{"sync", "--source", source, "--inference", "tp=2,ep=2"} + more);
  }

  static Outcome plan(const Words& more) {
    return run_plain(Words{"plan", "--source", trained(0), "--inference", "tp=2,ep=2"} + more);
  }

  /// The trained model without the tensors whose names have one of these words, and with `more`.
  std::string altered(const Words& without, const std::string& more = "") const {
    SafetensorsFile file = SafetensorsFile::read(trained(181) + "/model.safetensors");
    std::erase_if(file.tensors, [&](const auto& tensor) {
      return std::ranges::any_of(
          without, [&](const auto& word) { return tensor.first.find(word) != std::string::npos; });
    });
    if (!more.empty()) file.tensors[more] = {"BF16", {2, 3}, std::string(12, 'x')};
    const std::string folder = dir_ / "altered";
    std::filesystem::create_directories(folder);
    std::filesystem::copy_file(trained(181) + "/config.json", folder + "/config.json",
                               std::filesystem::copy_options::overwrite_existing);
    file.write(folder + "/model.safetensors");
    return folder;
  }
};

TEST_F(PartialCommands, PlanSaysWhatTravelsAndWhatStays) {
  const std::string json = dir_ / "plan.json";
  const Outcome outcome = plan({"--include", "*.experts.*", "--exclude", "*.experts.7.*", "--json", json});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"102 tensors", "# partial    63 of 102 tensors", "stay as they are"}));
  const auto report = read_json(json);
  EXPECT_EQ(report.at("model").at("tensors"), 63);
  EXPECT_EQ(report.at("partial").at("staying_tensors"), 39);
  const std::string whole = dir_ / "whole.json";
  EXPECT_TRUE(done(plan({"--json", whole})));
  EXPECT_EQ(read_json(whole).at("partial"), nullptr);
  EXPECT_NE(read_json(whole).at("hash"), report.at("hash"));
}

TEST_F(PartialCommands, WhatIsChosenIsSentAndCompared) {
  const Outcome outcome = sync({"--include", "*.q_proj.weight", "--include", "*.experts.3.*"});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"# partial 12 of 102 tensors", " partial\n", "partial, verified"}));
  EXPECT_TRUE(has(sync({"--include", "*.q_proj.weight", "--no-verify"}).out,
                  {" no, part\n", "partial, not verified"}));
  // A stage of the engine may get nothing.
  EXPECT_TRUE(done(run_job(3, {"sync", "--source", trained(181), "--inference", "pp=2",
                               "--inference-stage-layers", "2,1", "--include", "model.layers.0.*"})));
  EXPECT_TRUE(done(sync({"--quantize", "fp8-tensor", "--include", "*.experts.3.*"})));
  EXPECT_TRUE(refused(sync({"--quantize", "fp8-tensor", "--include", "*.q_proj.weight"}), 64,
                      {"q_proj.weight is sent", "k_proj.weight is not", "share one scale in fp8-tensor"}));
  // Quantised, and from Megatron ranks' shards.
  EXPECT_TRUE(done(sync({"--quantize", "fp8-channel", "--include", "*.up_proj.weight"})));
  const Words alloc{"--trainer-alloc", "megatron:(attn:d1p1t2|ffn:d1p1t1e2)"};
  const std::string shards = dir_ / "trainers";
  EXPECT_TRUE(done(
      run_plain(Words{"convert", "--source", trained(181), "--to", "megatron", "--output", shards} + alloc)));
  const Outcome from_shards = run_job(
      4, Words{"sync", "--source", shards, "--inference", "tp=2", "--include", "*.k_proj.weight"} + alloc);
  EXPECT_TRUE(done(from_shards));
  EXPECT_TRUE(has(from_shards.out, {"# partial 3 of 102 tensors", " partial\n"}));
}

TEST_F(PartialCommands, SourcesMayLackWhatIsNotSent) {
  const std::string source = altered({"embed_tokens", "lm_head"});
  EXPECT_TRUE(refused(sync({}, source), 65, {"embed_tokens.weight", "missing"}));
  EXPECT_TRUE(done(sync({"--exclude", "model.embed*", "--exclude", "lm_head.*"}, source)));
  EXPECT_TRUE(refused(sync({"--exclude", "lm_head.*"}, source), 65, {"embed_tokens.weight", "missing"}));
}

TEST_F(PartialCommands, SourcesMayHaveMoreThanTheModel) {
  const std::string source = altered({}, "value_head.weight");
  EXPECT_TRUE(refused(sync({}, source), 65, {"value_head.weight", "not to the model"}));
  const std::string json = dir_ / "report.json";
  const Outcome outcome = sync({"--exclude", "value_head.*", "--json", json}, source);
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"# unsent  of the source 1 tensor, 12 B: value_head.* (1)", " yes\n"}));
  const auto report = read_json(json);
  EXPECT_EQ(report.at("partial"), nullptr);
  EXPECT_EQ(report.at("left_out").at("tensors"), 1);
  EXPECT_EQ(report.at("left_out").at("bytes"), 12);
  EXPECT_TRUE(
      has(run_plain({"plan", "--source", source, "--exclude", "value_head.*"}).out, {"value_head.* (1)"}));
  EXPECT_TRUE(refused(sync({"--exclude", "value_heads.*"}, source), 65, {"value_head.weight"}));
}

TEST_F(PartialCommands, PatternsThatFitNothing) {
  EXPECT_TRUE(
      refused(plan({"--include", "*.expert.*"}), 64,
              {"--include '*.expert.*'", "fits no tensor of the model", "did you mean *.experts.*?"}));
  EXPECT_TRUE(refused(plan({"--include", "*.experts.*", "--exclude", "model.layers.*.self_atn.*"}), 64,
                      {"--exclude", "did you mean model.layers.*.self_attn.*?"}));
  EXPECT_TRUE(
      refused(plan({"--exclude", "vision_tower.*"}), 64,
              {"--exclude 'vision_tower.*'", "fits no tensor", "one of which is called model.layers."}));
  EXPECT_TRUE(refused(sync({"--exclude", "model.layers.9.*"}), 64,
                      {"--exclude 'model.layers.9.*'", "no layer or expert of that number"}));
  EXPECT_TRUE(refused(plan({"--include", "*.[0-9"}), 64, {"--include '*.[0-9'", "has a [ without its ]"}));
  EXPECT_TRUE(refused(plan({"--include", ""}), 64, {"--include ''", "is empty"}));
  EXPECT_TRUE(refused(plan({"--include", "*.experts.*", "--exclude", "model.*"}), 64,
                      {"nothing of the model's 102 tensors is left"}));
  EXPECT_TRUE(refused(plan({"--include", "a\x1b[0-9"}), 64, {"\\x1b"}));
}

TEST_F(PartialCommands, PatternsComeFromEverywhere) {
  const Variables environment{{"WEIGHTCAST_INCLUDE", "*.q_proj.weight\n*.k_proj.weight"}};
  const Words words{"plan", "--source", trained(0)};
  EXPECT_TRUE(has(run_plain(words, environment).out, {"6 of 102 tensors"}));
  put_file(dir_ / "options",
           "include = *.q_proj.weight\ninclude = *.v_proj.weight\ninclude = *.o_proj.weight\n");
  EXPECT_TRUE(has(run_plain(words + Words{"--config", dir_ / "options"}).out, {"9 of 102 tensors"}));
  EXPECT_TRUE(
      has(run_plain({"sync", "--help"}).out, {"--include PATTERN", "--exclude PATTERN", "*.experts.*"}));
}

TEST_F(PartialCommands, FilesOfShardsAreWhole) {
  const Words words = sync_words(trained(0)) + Words{"--include", "*.experts.*"};
  EXPECT_TRUE(
      refused(run_job(3, words), 64,
              {"--sink hdf5:", "files of shards hold all of a version", "leaves 30 of 102 tensors out"}));
  EXPECT_FALSE(std::filesystem::exists(sink_));
  EXPECT_TRUE(refused(run_plain(words + Words{"--dry-run"}), 64, {"files of shards"}));
}

TEST_F(PartialCommands, VerifyComparesJustThese) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  const auto verify = [&](int step, const Words& more) {
    return run_plain(Words{"verify", sink_, "--source", trained(step)} + more);
  };
  const std::string json = dir_ / "report.json";
  const Outcome outcome = verify(0, {"--include", "*.gate_proj.weight", "--json", json});
  EXPECT_TRUE(done(outcome));
  EXPECT_TRUE(has(outcome.out, {"24 of 102 tensors"}));
  EXPECT_EQ(read_json(json).at("partial").at("tensors"), 24);
  // Of each expert's gate what its one rank has, no byte of up beside it.
  EXPECT_EQ(read_json(json).at("bytes"), read_json(json).at("partial").at("bytes"));
  EXPECT_TRUE(refused(verify(181, {"--include", "*.gate_proj.weight"}), 66,
                      {"gate_proj.weight", "24 of 24 tensors"}));
}

TEST_F(PartialCommands, VerifyComparesScalesOfWhatIsChosen) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)) + Words{"--quantize", "fp8-tensor"})));
  const auto verify = [&](int step, const std::string& pattern) {
    return run_plain({"verify", sink_, "--source", trained(step), "--include", pattern});
  };
  EXPECT_TRUE(done(verify(0, "*.experts.3.*")));
  EXPECT_TRUE(refused(verify(181, "*.experts.3.*"), 66, {"experts.3.", "9 of 9 tensors"}));
  EXPECT_TRUE(refused(verify(0, "*.experts.3.up_proj.*"), 64, {"share one scale in fp8-tensor"}));
}

TEST_F(PartialCommands, AVisionTowerIsLeftOut) {
  const std::string config = dir_ / "config.json";
  auto text = nlohmann::json::parse(get_file(std::string(kData) + "/vllm/qwen3.5-vl/config.json"));
  text["vision_config"] = {{"depth", 2}};
  put_file(config, text.dump());
  const Words words{"plan", "--model", config};
  EXPECT_TRUE(refused(run_plain(words), 65, {"vision_config", "vision tower", "--exclude 'model.visual.*'"}));
  const Outcome outcome = run_plain(words + Words{"--exclude", "model.visual.*"});
  EXPECT_TRUE(done(outcome));
  EXPECT_EQ(outcome.out.find("# partial"), std::string::npos);
  EXPECT_TRUE(done(run_plain(words + Words{"--include", "model.layers.0.*"})));
  EXPECT_TRUE(refused(run_plain(words + Words{"--exclude", "model.visual.blocks.*"}), 65, {"vision_config"}));
  EXPECT_TRUE(refused(run_plain(words + Words{"--include", "mtp.*", "--exclude", "model.visual.*"}), 64,
                      {"--include 'mtp.*'", "fits only what is left out"}));
  // What is left out in any case may be named.
  EXPECT_TRUE(done(run_plain(words + Words{"--exclude", "model.visual.*", "--exclude", "mtp.*"})));
}

}  // namespace
}  // namespace weightcast::test_support
