// synth, convert and inspect: checkpoints that are made and copied.

#include <algorithm>

#include "cli/cli.hpp"
#include "sys/hdf5.hpp"

namespace weightcast::test_support {
namespace {

class Copies : public CliTest {
 protected:
  /// What `inspect` says of a checkpoint: name → dtype, shape, bytes, digest.
  nlohmann::json inspect(const std::string& path) const {
    const std::string json = dir_ / "inspect.json";
    EXPECT_TRUE(done(run_plain({"inspect", path, "--json", json})));
    return read_json(json).at("tensors");
  }

  void convert(const std::string& from, const std::string& to, const Words& more = {}) const {
    EXPECT_TRUE(done(run_plain(Words{"convert", "--source", from, "--output", to} + more)));
  }
};

TEST_F(Copies, DataThatAnHdf5FileHasInAnotherAreNoFileOfARank) {
  const std::string source = dir_ / "a.h5";
  put_file(dir_ / "raw.bin", "01234567");
  {
    const Hdf5Lock lock;
    const Hdf5File file(
        WEIGHTCAST_HDF5(H5Fcreate(source.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), source));
    const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_CREATE), source));
    WEIGHTCAST_HDF5(H5Pset_external(creation.get(), "raw.bin", 0, H5F_UNLIMITED), source);
    const hsize_t extent = 8;
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate_simple(1, &extent, nullptr), source));
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
        H5Dcreate2(file.get(), "w", H5T_STD_U8LE, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
        source));
  }
  convert(source, dir_ / "b", {"--external-data", "--model", model_folder("tiny-qwen3")});
  EXPECT_EQ(inspect(dir_ / "b").at(0).at("bytes"), 8);
}

class Synth : public Copies, public ::testing::WithParamInterface<const char*> {};

TEST_P(Synth, WritesTheCatalogOfTheModel) {
  const std::string model = model_folder(GetParam());
  EXPECT_TRUE(done(run_plain({"synth", "--model", model, "--output", dir_ / "model"})));
  const auto file = SafetensorsFile::read(dir_ / "model/model.safetensors");
  const auto expected = read_json(model + "/tensors.json");
  EXPECT_EQ(file.tensors.size(), expected.size());
  for (const auto& [name, entry] : expected.items()) {
    ASSERT_TRUE(file.tensors.contains(name)) << name;
    EXPECT_EQ(file.tensors.at(name).shape, entry.at("shape").get<std::vector<std::int64_t>>()) << name;
    EXPECT_EQ(file.tensors.at(name).dtype, entry.at("dtype").get<std::string>()) << name;
  }
  EXPECT_EQ(read_json(dir_ / "model/config.json"), read_json(model + "/config.json"));
}

INSTANTIATE_TEST_SUITE_P(Models, Synth, ::testing::Values("tiny-qwen3", "tiny-qwen3-moe"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_F(Copies, SynthIsDeterministic) {
  const Words words{"synth", "--model", model_folder("tiny-qwen3"), "--output"};
  EXPECT_TRUE(done(run_plain(words + Words{dir_ / "a"})));
  EXPECT_TRUE(done(run_plain(words + Words{dir_ / "b"})));
  EXPECT_TRUE(done(run_plain(words + Words{dir_ / "c", "--weight-version", "1"})));
  EXPECT_EQ(folder_contents(dir_ / "a"), folder_contents(dir_ / "b"));
  const auto first = SafetensorsFile::read(dir_ / "a/model.safetensors");
  const auto other = SafetensorsFile::read(dir_ / "c/model.safetensors");
  for (const auto& [name, tensor] : first.tensors)
    EXPECT_NE(other.tensors.at(name).data, tensor.data) << name;
}

TEST_F(Copies, SynthWritesTheSameNumbersInEveryForm) {
  const Words words{"synth", "--model", model_folder("tiny-qwen3"), "--output"};
  EXPECT_TRUE(done(run_plain(words + Words{dir_ / "one"})));
  EXPECT_TRUE(done(run_plain(words + Words{dir_ / "several", "--max-file-size", "1MB"})));
  EXPECT_TRUE(done(run_plain(words + Words{dir_ / "model.h5"})));
  EXPECT_TRUE(std::filesystem::exists(dir_ / "several/model.safetensors.index.json"));
  EXPECT_EQ(inspect(dir_ / "one"), inspect(dir_ / "several"));
  EXPECT_EQ(inspect(dir_ / "one"), inspect(dir_ / "model.h5"));
}

TEST_F(Copies, SynthWithFewerLayers) {
  EXPECT_TRUE(done(run_plain(
      {"synth", "--model", model_folder("tiny-qwen3"), "--layers", "1", "--output", dir_ / "model"})));
  EXPECT_EQ(read_json(dir_ / "model/config.json").at("num_hidden_layers"), 1);
  EXPECT_TRUE(done(run_plain({"plan", "--source", dir_ / "model"})));
}

TEST_F(Copies, RoundTripThroughHdf5) {
  convert(trained(181), dir_ / "model.h5");
  convert(dir_ / "model.h5", dir_ / "back");
  EXPECT_EQ(SafetensorsFile::read(dir_ / "back/model.safetensors").tensors,
            SafetensorsFile::read(trained(181) + "/model.safetensors").tensors);
  EXPECT_EQ(read_json(dir_ / "back/config.json"), read_json(trained(181) + "/config.json"));
}

TEST_F(Copies, RoundTripOfOtherDtypes) {
  SafetensorsFile file;
  const std::vector<std::pair<std::string, std::size_t>> dtypes{
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},  {"I32", 4},     {"I16", 2},
      {"I8", 1},  {"U8", 1},  {"U16", 2}, {"U32", 4},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (const auto& [dtype, bytes] : dtypes) {
    std::string data(6 * bytes, '\0');
    for (std::size_t i = 0; i < data.size(); ++i)
      data[i] = static_cast<char>(dtype == "BOOL" ? i % 2 : 37 * i + 1);
    file.tensors["tensor of " + dtype] = {dtype, {2, 3}, data};
  }
  put_file(dir_ / "in/config.json", get_file(trained(0) + "/config.json"));
  file.write(dir_ / "in/model.safetensors");
  convert(dir_ / "in", dir_ / "model.h5");
  convert(dir_ / "model.h5", dir_ / "out");
  EXPECT_EQ(SafetensorsFile::read(dir_ / "out/model.safetensors").tensors, file.tensors);
}

TEST_F(Copies, DigestsAreEqualInEveryForm) {
  convert(trained(0), dir_ / "several", {"--max-file-size", "400KB"});
  convert(trained(0), dir_ / "model.h5");
  const auto expected = inspect(trained(0));
  EXPECT_EQ(expected.size(), 102);
  EXPECT_EQ(inspect(trained(0) + "/model.safetensors"), expected);
  EXPECT_EQ(inspect(dir_ / "several"), expected);
  EXPECT_EQ(inspect(dir_ / "model.h5"), expected);
  // Versions 0 and 1 differ in 2 % of the weights, hence in most tensors.
  const auto other = inspect(trained(1));
  std::size_t differing = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) differing += expected[i] != other[i];
  EXPECT_GT(differing, 50);
}

TEST_F(Copies, FilesOfBoundedSize) {
  convert(trained(0), dir_ / "several", {"--max-file-size", "400KB"});
  const auto index = read_json(dir_ / "several/model.safetensors.index.json");
  EXPECT_EQ(index.at("metadata").at("total_size"), 1566144);
  EXPECT_EQ(index.at("weight_map").size(), 102);
  std::size_t files = 0;
  for (const auto& [name, bytes] : folder_contents(dir_ / "several")) {
    if (!name.ends_with(".safetensors")) continue;
    ++files;
    EXPECT_LE(bytes.size(), 400'000 + 20'000) << name;
  }
  EXPECT_GE(files, 4);
}

TEST_F(Copies, VersionTravelsFromFormToForm) {
  const auto expect_version = [&](const std::string& name, const std::string& version) {
    const Outcome outcome = run_plain({"inspect", dir_ / name, "--no-digests"});
    EXPECT_TRUE(done(outcome));
    EXPECT_TRUE(has(outcome.out, {"102 tensors", "version " + version})) << name;
  };
  convert(trained(0), dir_ / "model.h5", {"--weight-version", "42"});
  expect_version("model.h5", "42");
  convert(dir_ / "model.h5", dir_ / "copy.h5");
  expect_version("copy.h5", "42");
  convert(dir_ / "copy.h5", dir_ / "several", {"--max-file-size", "400KB"});
  expect_version("several", "42");
  convert(dir_ / "several", dir_ / "back.h5");
  expect_version("back.h5", "42");
  convert(dir_ / "several", dir_ / "one", {"--weight-version", "43"});
  expect_version("one", "43");
}

TEST_F(Copies, SynthStoresItsVersion) {
  for (const std::string name : {"model", "model.h5"}) {
    EXPECT_TRUE(done(run_plain(
        {"synth", "--model", model_folder("tiny-qwen3"), "--output", dir_ / name, "--weight-version", "9"})));
    EXPECT_TRUE(has(run_plain({"inspect", dir_ / name, "--no-digests"}).out, {"version 9"})) << name;
  }
}

TEST_F(Copies, AModelThatIsLargerThanTheDiskMayHaveFewerLayers) {
  auto config = read_json(model_folder("tiny-qwen3") + "/config.json");
  config["hidden_size"] = 1 << 21;
  config["intermediate_size"] = 1 << 22;
  put_file(dir_ / "config.json", config.dump());
  EXPECT_TRUE(refused(run_plain({"synth", "--model", dir_ / "config.json", "--output", dir_ / "big"}), 74,
                      {dir_ / "big", "TiB needed", "--layers"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "big"));
}

TEST_F(Copies, InspectListsTensors) {
  const Outcome outcome = run_plain({"inspect", trained(0), "--progress", "never"});
  EXPECT_TRUE(done(outcome));
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(has(outcome.out, {"102 tensors", "1.49 MiB", "1 file", "digest", "bfloat16",
                                "model.layers.2.mlp.experts.7.down_proj.weight", "[128, 64]", "16384"}));
  EXPECT_FALSE(has(run_plain({"inspect", trained(0), "--no-digests"}).out, {"digest"}));
}

TEST_F(Copies, ConversionReplacesAnEarlierCheckpoint) {
  convert(trained(0), dir_ / "model", {"--max-file-size", "400KB"});
  convert(trained(1), dir_ / "model");
  EXPECT_EQ(inspect(dir_ / "model"), inspect(trained(1)));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "model/model.safetensors.index.json"));
}

TEST_F(Copies, OfAShardAreRefused) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0)))));
  const std::string shard = sink_ + "/rank-0.h5";
  EXPECT_TRUE(
      refused(run_plain({"convert", "--source", shard, "--model", trained(0), "--output", dir_ / "x"}), 65,
              {shard, "shard", "checkpoint"}));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "x"));
}

TEST_F(Copies, TheConfigIsCopiedAsItIs) {
  const std::string source = dir_ / "source";
  std::filesystem::copy(trained(0), source);
  std::string config = get_file(source + "/config.json");
  config.insert(config.find('{') + 1, "  \"time_step_limit\": [0.0, Infinity],\t\"x\": NaN,");
  put_file(source + "/config.json", config);
  const std::string output = dir_ / "copy";
  EXPECT_TRUE(done(run_plain({"convert", "--source", source, "--output", output})));
  EXPECT_EQ(get_file(output + "/config.json"), config);
}

TEST_F(Copies, SafetensorsGoIntoADirectory) {
  EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(0), "--output", dir_ / "x.safetensors"}), 64,
                      {"--output", "directory"}));
}

}  // namespace
}  // namespace weightcast::test_support
