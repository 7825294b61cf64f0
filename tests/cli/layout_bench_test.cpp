// bench --layouts: every layout with everything that it takes, measured and verified, or the reason why not.

#include <set>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

std::string pair_text(const std::string& layout, const std::string& quantizer) {
  std::string pair = layout;
  return pair.append(" ").append(quantizer);
}

/// What each layout takes, with the rule of the default list.
std::set<std::string> all_pairs() {
  const std::map<std::string, Words> taken{
      {"triton", {"none", "fp8-block", "fp8-tensor", "fp8-channel", "mxfp8"}},
      {"triton-kernels", {"none"}},
      {"cutlass", {"none", "fp8-block", "fp8-tensor", "fp8-channel", "mxfp8", "nvfp4", "mxfp4"}},
      {"trtllm", {"none", "fp8-block", "fp8-tensor", "mxfp8", "nvfp4", "mxfp4"}},
      {"trtllm-shuffled", {"fp8-block"}},
      {"deepgemm", {"none", "fp8-block", "fp8-block:ue8m0"}},
      {"deepgemm-mega", {"none", "mxfp4"}},
      {"cute-dsl", {"nvfp4"}},
      {"vllm-cpu", {"none"}}};
  std::set<std::string> pairs;
  for (const auto& [layout, quantizers] : taken) {
    for (const std::string& quantizer : quantizers) pairs.insert(pair_text(layout, quantizer));
  }
  return pairs;
}

std::string pair_of(const nlohmann::json& row) {
  return pair_text(row.at("layout"), row.at("quantizer"));
}

std::set<std::string> pairs_of(const nlohmann::json& report) {
  std::set<std::string> pairs;
  for (const auto& row : report.at("layouts")) {
    EXPECT_TRUE(pairs.insert(pair_of(row)).second) << pair_of(row) << " twice";
  }
  return pairs;
}

bool is_positive(const nlohmann::json& figure) {
  return figure.is_number() && figure.get<double>() > 0;
}

class LayoutBench : public CliTest {
 protected:
  /// The report of a run of few rounds.
  nlohmann::json measure(const std::string& model, const Words& more = {}) {
    const std::string json = dir_ / "report.json";
    const Outcome outcome =
        run_job(1, Words{"bench", "--layouts", "--model", model, "--iterations", "2", "--json", json} + more);
    EXPECT_TRUE(done(outcome));
    text_ = outcome.out;
    return read_json(json);
  }

  std::string config_with(const nlohmann::json& changes) const {
    nlohmann::json config = read_json(model_folder("block-qwen3-moe") + "/config.json");
    config.merge_patch(changes);
    put_file(dir_ / "config/config.json", config.dump());
    return dir_ / "config";
  }

  std::string text_;
};

TEST_F(LayoutBench, MeasuresAndVerifiesAllThatLayoutsTake) {
  for (const char* model : {"tiny-qwen3-moe", "block-qwen3-moe"}) {
    SCOPED_TRACE(model);
    const nlohmann::json report = measure(model_folder(model));
    EXPECT_EQ(report.at("command"), "bench");
    EXPECT_EQ(report.at("status"), "done");
    EXPECT_EQ(report.at("iterations"), 2);
    EXPECT_TRUE(report.at("verified").get<bool>());
    EXPECT_TRUE(is_positive(report.at("copy_gb_s")));
    EXPECT_EQ(pairs_of(report), all_pairs());
    for (const auto& row : report.at("layouts")) {
      SCOPED_TRACE(pair_of(row));
      EXPECT_TRUE(row.at("refused").is_null());
      for (const char* figure : {"bytes", "seconds", "gb_s", "of_copy"}) {
        EXPECT_TRUE(is_positive(row.at(figure))) << figure;
      }
      // Rows of values change their places in these alone.
      const bool indexed = pair_of(row) == "trtllm none" || pair_of(row) == "deepgemm-mega none";
      EXPECT_EQ(is_positive(row.at("index_seconds")), indexed);
      EXPECT_EQ(is_positive(row.at("index_ratio")), indexed);
      EXPECT_TRUE(has(text_, {row.at("layout"), row.at("quantizer")}));
    }
    EXPECT_TRUE(has(text_, {"# copy", "# verified"}));
  }
}

TEST_F(LayoutBench, SaysWhyALayoutRefusesTheShape) {
  const nlohmann::json report = measure(config_with({{"moe_intermediate_size", 96}}));
  EXPECT_EQ(pairs_of(report), all_pairs());
  std::set<std::string> refused;
  for (const auto& row : report.at("layouts")) {
    SCOPED_TRACE(pair_of(row));
    EXPECT_NE(row.at("refused").is_null(), row.at("seconds").is_null());
    if (row.at("refused").is_null()) continue;
    refused.insert(pair_of(row));
    EXPECT_TRUE(has(row.at("refused"), {"must be a multiple of"}));
    EXPECT_TRUE(has(text_, {row.at("refused")}));
  }
  EXPECT_TRUE(refused.count("triton fp8-block") == 1 && refused.count("cutlass nvfp4") == 1);
  // It pads, which the way through an index does not.
  EXPECT_EQ(refused.count("trtllm none"), 0u);
  EXPECT_TRUE(report.at("verified").get<bool>());
}

TEST_F(LayoutBench, MeasuresOnlyWhatIsAskedFor) {
  const std::string model = model_folder("block-qwen3-moe");
  EXPECT_EQ(pairs_of(measure(model, {"--moe-layout", "triton-kernels"})),
            std::set<std::string>{"triton-kernels none"});
  EXPECT_EQ(pairs_of(measure(model, {"--quantize", "nvfp4:unit"})),
            (std::set<std::string>{"cutlass nvfp4:unit", "trtllm nvfp4:unit", "cute-dsl nvfp4:unit"}));
  const nlohmann::json one =
      measure(model, {"--moe-layout", "trtllm", "--quantize", "mxfp4:ocp", "--no-verify"});
  EXPECT_EQ(pairs_of(one), std::set<std::string>{"trtllm mxfp4:ocp"});
  EXPECT_FALSE(one.at("verified").get<bool>());
  EXPECT_TRUE(has(text_, {"not verified"}));
}

TEST_F(LayoutBench, TakesFamiliesThatTheRestDoesNotKnow) {
  const std::string model = config_with({{"architectures", {"DeepseekV3ForCausalLM"}},
                                         {"num_experts", nullptr},
                                         {"n_routed_experts", 3},
                                         {"quantization_config", {{"quant_method", "fp8"}}}});
  const nlohmann::json report = measure(model, {"--moe-layout", "deepgemm"});
  EXPECT_EQ(report.at("experts").at("of"), 3);
  EXPECT_TRUE(report.at("verified").get<bool>());
}

TEST_F(LayoutBench, RefusesWhatItCannotMeasure) {
  const Words bench{"bench", "--layouts", "--model", model_folder("block-qwen3-moe")};
  EXPECT_TRUE(refused(run_job(1, {"bench", "--layouts", "--model", model_folder("tiny-qwen3")}), 64,
                      {"--layouts", "tiny-qwen3", "no routed experts"}));
  EXPECT_TRUE(refused(run_job(1, {"bench", "--layouts"}), 64, {"--layouts", "--model CONFIG_JSON"}));
  EXPECT_TRUE(refused(run_job(1, bench + Words{"--source", trained(0)}), 64,
                      {"--source", "not together", "--layouts"}));
  EXPECT_TRUE(refused(run_job(2, bench), 64, {"--layouts", "one rank", "mpirun -n 1"}));
  EXPECT_TRUE(refused(run_job(1, bench + Words{"--moe-layout", "triton", "--quantize", "nvfp4"}), 64,
                      {"--moe-layout triton", "nvfp4"}));
  EXPECT_TRUE(
      refused(run_job(1, bench + Words{"--moe-layout", "trition"}), 64, {"trition", "choose one of"}));
}

}  // namespace
}  // namespace weightcast::test_support
