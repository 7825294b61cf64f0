// Whatever form a checkpoint has, the same shards come of it.

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

class Sources : public CliTest {
 protected:
  /// The shards that come of a source.
  std::map<std::string, std::string> shards_of(const std::string& source, const Words& more = {}) const {
    const std::string sink = dir_ / "out";
    std::filesystem::remove_all(sink);
    EXPECT_TRUE(done(run_job(4, Words{"sync", "--source", source, "--trainers", "2", "--inference",
                                      "tp=2,ep=2", "--bucket-size", "256KiB", "--sink", "hdf5:" + sink} +
                                    more)));
    return shard_contents(sink);
  }

  void convert(const std::string& to, const Words& more = {}) const {
    EXPECT_TRUE(done(run_plain(Words{"convert", "--source", trained(0), "--output", to} + more)));
  }
};

TEST_F(Sources, SingleFile) {
  const auto expected = shards_of(trained(0));
  EXPECT_EQ(expected.size(), 2 * (3 * 9 + 3));
  EXPECT_EQ(shards_of(trained(0) + "/model.safetensors"), expected);
}

TEST_F(Sources, AnyNumberOfThreadsReads) {
  const auto expected = shards_of(trained(0), {"--read-threads", "1"});
  EXPECT_EQ(shards_of(trained(0), {"--read-threads", "7"}), expected);
  const Words none{"sync", "--source", trained(0), "--read-threads", "0"};
  EXPECT_TRUE(refused(run_job(2, none), 64, {"--read-threads 0", "at least 1"}));
}

TEST_F(Sources, SeveralFilesWithAndWithoutIndex) {
  const auto expected = shards_of(trained(0));
  convert(dir_ / "several", {"--max-file-size", "400KB"});
  EXPECT_EQ(shards_of(dir_ / "several"), expected);
  std::filesystem::remove(dir_ / "several/model.safetensors.index.json");
  EXPECT_EQ(shards_of(dir_ / "several"), expected);
}

TEST_F(Sources, Hdf5) {
  const auto expected = shards_of(trained(0));
  // The file carries the config.
  convert(dir_ / "alone/checkpoint.h5");
  EXPECT_EQ(shards_of(dir_ / "alone/checkpoint.h5"), expected);
  EXPECT_EQ(shards_of(dir_ / "alone"), expected);
}

TEST_F(Sources, AFileCarriesItsOwnConfig) {
  const std::string file = dir_ / "work/checkpoint.h5";
  convert(file);
  auto config = read_json(trained(0) + "/config.json");
  config["num_hidden_layers"] = 2;
  put_file(dir_ / "work/config.json", config.dump());
  // What lies beside it is of another model.
  EXPECT_TRUE(
      has(run_plain({"plan", "--source", file}).out, {"102 tensors", file + " (its own config.json)"}));
  EXPECT_TRUE(refused(run_plain({"plan", "--source", file, "--model", dir_ / "work/config.json"}), 65,
                      {file, "the model is what " + (dir_ / "work/config.json") + " says"}));
  // As a folder the two are one checkpoint, whose config.json is the one that is named so.
  EXPECT_TRUE(refused(run_plain({"plan", "--source", dir_ / "work"}), 65,
                      {"the model is what " + (dir_ / "work/config.json") + " says"}));
}

TEST_F(Sources, ForeignFilesInTheFolderAreNotRead) {
  std::filesystem::copy(trained(0), dir_ / "model");
  put_file(dir_ / "model/training_args.bin", "whatever");
  put_file(dir_ / "model/.model.safetensors.partial", "unfinished");
  EXPECT_EQ(shards_of(dir_ / "model"), shards_of(trained(0)));
}

/// The trained checkpoint with the experts of each layer stacked: gate above up in each expert.
SafetensorsFile stacked() {
  SafetensorsFile file = SafetensorsFile::read(trained(0) + "/model.safetensors");
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    SafetensorsFile::Tensor gate_up{"BF16", {8, 128, 128}, ""};
    SafetensorsFile::Tensor down{"BF16", {8, 128, 64}, ""};
    for (int expert = 0; expert < 8; ++expert) {
      const std::string name = prefix + std::to_string(expert);
      gate_up.data += file.tensors.at(name + ".gate_proj.weight").data;
      gate_up.data += file.tensors.at(name + ".up_proj.weight").data;
      down.data += file.tensors.at(name + ".down_proj.weight").data;
      for (const char* matrix : {".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"}) {
        file.tensors.erase(name + matrix);
      }
    }
    file.tensors[prefix + "gate_up_proj"] = gate_up;
    file.tensors[prefix + "down_proj"] = down;
  }
  return file;
}

TEST_F(Sources, StackedExperts) {
  std::filesystem::create_directory(dir_ / "stacked");
  std::filesystem::copy(trained(0) + "/config.json", dir_ / "stacked/config.json");
  stacked().write(dir_ / "stacked/model.safetensors");
  EXPECT_EQ(shards_of(dir_ / "stacked"), shards_of(trained(0)));
  const Words cutlass{"--moe-layout", "cutlass", "--bucket-size", "64KiB"};
  Words words{"sync", "--source", dir_ / "stacked", "--inference", "tp=4,ep=2", "--sink", "hdf5:" + sink_};
  EXPECT_TRUE(done(run_job(5, words + cutlass)));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(0)})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", dir_ / "stacked"})));
}

TEST_F(Sources, StackedExpertsOfAWrongShape) {
  SafetensorsFile file = stacked();
  // The other order of the axes, as some exports have it.
  file.tensors.at("model.layers.1.mlp.experts.down_proj").shape = {8, 64, 128};
  file.write(dir_ / "model.safetensors");
  EXPECT_TRUE(refused(run_job(3, sync_words(dir_ / "model.safetensors") + Words{"--model", trained(0)}), 65,
                      {"model.layers.1.mlp.experts.down_proj", "[8, 64, 128]", "[8, 128, 64]"}));
}

/// The nearest of the two bfloat16 around a float32, the even one of two that are equally near: by distances,
/// which are exact in double.
std::uint16_t nearest_bf16(float value) {
  const auto below = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  const auto above = static_cast<std::uint16_t>(below + 1);
  const auto widen = [](std::uint16_t bits) {
    return double{std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16)};
  };
  const double to_below = std::abs(value - widen(below));
  const double to_above = std::abs(value - widen(above));
  if (to_below != to_above) return to_below < to_above ? below : above;
  return below % 2 == 0 ? below : above;
}

TEST_F(Sources, Float32IsCastToNearestEven) {
  SafetensorsFile wide = SafetensorsFile::read(trained(0) + "/model.safetensors");
  SafetensorsFile rounded = wide;
  std::size_t changed = 0;
  for (auto& [name, tensor] : wide.tensors) {
    std::string& narrow = rounded.tensors.at(name).data;
    tensor = widened(tensor);
    // Exact ones, ties, and their neighbours on both sides.
    constexpr std::array<std::uint16_t, 8> kLowHalves{0x0000, 0x8000, 0x7fff, 0x8001,
                                                      0x0001, 0xffff, 0x8000, 0x4321};
    for (std::size_t i = 0; i < narrow.size() / 2; ++i) {
      std::memcpy(tensor.data.data() + 4 * i, &kLowHalves.at(i % 8), 2);
      float value = 0;
      std::memcpy(&value, tensor.data.data() + 4 * i, 4);
      const std::uint16_t nearest = nearest_bf16(value);
      changed += std::memcmp(narrow.data() + 2 * i, &nearest, 2) != 0;
      std::memcpy(narrow.data() + 2 * i, &nearest, 2);
    }
  }
  EXPECT_GT(changed, 100'000);
  for (const auto& [folder, file] : {std::pair("wide", &wide), std::pair("rounded", &rounded)}) {
    put_file(dir_ / folder + "/config.json", get_file(trained(0) + "/config.json"));
    file->write(dir_ / folder + "/model.safetensors");
  }
  EXPECT_EQ(shards_of(dir_ / "wide"), shards_of(dir_ / "rounded"));

  const Words note{"102 tensors", "float32", "cast to bfloat16", "nearest even"};
  const Outcome plan = run_plain({"plan", "--source", dir_ / "wide"});
  EXPECT_TRUE(done(plan));
  EXPECT_TRUE(has(plan.out, note + Words{"# cast"}));
  EXPECT_FALSE(has(run_plain({"plan", "--source", dir_ / "rounded"}).out, {"# cast"}));
  const Outcome sync = run_job(3, sync_words(dir_ / "wide"));
  EXPECT_TRUE(done(sync));
  EXPECT_TRUE(has(sync.err, note));
  EXPECT_EQ(run_job(3, sync_words(dir_ / "wide") + Words{"-q"}).err, "");
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", dir_ / "wide"})));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", dir_ / "rounded"})));
  EXPECT_TRUE(refused(run_plain({"verify", sink_, "--source", trained(0)}), 66, {"rank-0.h5"}));
}

TEST_F(Sources, TiedHeadThatIsStoredAnyway) {
  EXPECT_TRUE(done(run_plain({"synth", "--model", model_folder("tiny-qwen3"), "--output", dir_ / "model"})));
  const auto expected = shards_of(dir_ / "model");
  SafetensorsFile file = SafetensorsFile::read(dir_ / "model/model.safetensors");
  file.tensors["lm_head.weight"] = file.tensors.at("model.embed_tokens.weight");
  file.write(dir_ / "model/model.safetensors");
  EXPECT_EQ(shards_of(dir_ / "model"), expected);
  // One that is the embedding no longer.
  auto& head = file.tensors.at("lm_head.weight");
  head.data.back() = static_cast<char>(head.data.back() ^ 1);
  file.write(dir_ / "model/model.safetensors");
  const Words words{"--source", dir_ / "model"};
  EXPECT_TRUE(refused(run_job(3, Words{"sync", "--trainers", "2"} + words), 65,
                      {dir_ / "model", "lm_head.weight differs", "--tied-head embedding"}));
  EXPECT_TRUE(refused(run_plain(Words{"verify", dir_ / "out"} + words), 65, {"lm_head.weight differs"}));
  EXPECT_TRUE(refused(run_plain(Words{"convert", "--to", "hf", "--output", dir_ / "copy"} + words), 65,
                      {"lm_head.weight differs"}));
  EXPECT_EQ(shards_of(dir_ / "model", {"--tied-head", "embedding"}), expected);
}

TEST_F(Sources, OtherSpellingsOfTheConfig) {
  auto config = read_json(trained(0) + "/config.json");
  config["num_experts"] = config.at("num_local_experts");
  config.erase("num_local_experts");
  config["torch_dtype"] = config.at("dtype");
  config.erase("dtype");
  config["rope_theta"] = 10000.0;
  config.erase("rope_parameters");
  put_file(dir_ / "config.json", config.dump());
  EXPECT_EQ(shards_of(trained(0), {"--model", dir_ / "config.json"}), shards_of(trained(0)));
}

}  // namespace
}  // namespace weightcast::test_support
