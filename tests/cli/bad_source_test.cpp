// Checkpoints that cannot be what they claim to be. Each is refused by a job before anything moves, and the
// shards that are already there stay as they are.

#include <sys/stat.h>
#include <unistd.h>

#include <functional>

#include "cli/cli.hpp"
#include "support/other_user.hpp"

namespace weightcast::test_support {
namespace {

/// One way to spoil a checkpoint.
struct BadSource {
  std::string name;
  int code = 65;
  Words in_the_line;
  /// Makes a checkpoint in the folder, `config.json` apart, and returns what to name as the source.
  std::function<std::string(const std::string& folder)> make;
};

std::string file_of(const std::string& folder) {
  return folder + "/model.safetensors";
}

/// What test listings show.
std::ostream& operator<<(std::ostream& out, const BadSource& source) {
  return out << source.name;
}

/// A checkpoint like the trained one, but for a change.
std::function<std::string(const std::string&)> changed(std::function<void(SafetensorsFile&)> change) {
  return [change = std::move(change)](const std::string& folder) {
    SafetensorsFile file = SafetensorsFile::read(file_of(trained(0)));
    change(file);
    file.write(file_of(folder));
    return folder;
  };
}

/// A single file of such bytes.
std::function<std::string(const std::string&)> holding(std::function<std::string(std::string)> spoil) {
  return [spoil = std::move(spoil)](const std::string& folder) {
    put_file(file_of(folder), spoil(get_file(file_of(trained(0)))));
    return folder;
  };
}

/// A single file with that header and that many bytes of data.
std::function<std::string(const std::string&)> header(std::string text, std::size_t data_bytes) {
  return [text = std::move(text), data_bytes](const std::string& folder) {
    put_file(file_of(folder), safetensors_bytes(text, std::string(data_bytes, 'd')));
    return folder;
  };
}

std::string with_length(std::string bytes, std::uint64_t length) {
  return bytes.replace(0, sizeof length, reinterpret_cast<const char*>(&length), sizeof length);
}

/// The trained checkpoint in several files with an index.
std::string split(const std::string& folder) {
  EXPECT_TRUE(
      done(run_plain({"convert", "--source", trained(0), "--output", folder, "--max-file-size", "600KB"})));
  return folder;
}

constexpr const char* kNorm = "model.layers.1.self_attn.q_norm.weight";
constexpr const char* kExpert = "model.layers.2.mlp.experts.3.up_proj.weight";

std::vector<BadSource> damaged_files() {
  return {
      {"Truncated",
       65,
       {"model.safetensors", "truncated", "copy it again"},
       holding([](const std::string& bytes) { return bytes.substr(0, bytes.size() - 1); })},
      {"TruncatedInTheHeader",
       65,
       {"model.safetensors", "header", "truncated"},
       holding([](const std::string& bytes) { return bytes.substr(0, 1000); })},
      {"Empty", 65, {"model.safetensors", "0 bytes"}, holding([](const std::string&) {
         return std::string();
       })},
      {"HeaderLengthBeyondTheFile",
       65,
       {"model.safetensors", "header", "2000000 bytes", "truncated"},
       holding([](const std::string& bytes) { return with_length(bytes, 2'000'000); })},
      {"HeaderLengthBeyondAllFiles",
       65,
       {"model.safetensors", "header", "18446744073709551615", "truncated"},
       holding([](const std::string& bytes) { return with_length(bytes, ~std::uint64_t{0}); })},
      {"HeaderThatIsNoJson", 65, {"model.safetensors", "header", "not JSON"}, header("{\"a\": ", 0)},
      {"HeaderThatIsNoObject", 65, {"model.safetensors", "header", "object"}, header("[1, 2]", 0)},
      {"DataOfNoTensor",
       65,
       {"model.safetensors", "belong to no tensor"},
       holding([](const std::string& bytes) { return bytes + "tail"; })},
      {"OverlappingTensors",
       65,
       {"model.safetensors", "'first'", "'second'", "overlap"},
       header(R"({"first": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
                  "second": {"dtype": "BF16", "shape": [4], "data_offsets": [6, 14]}})",
              14)},
      {"OffsetsThatContradictTheShape",
       65,
       {"model.safetensors", "'first'", "[5]", "8"},
       header(R"({"first": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 8]}})", 8)},
      {"TensorTwice",
       65,
       {"model.safetensors", "'first'", "twice"},
       header(R"({"first": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
                  "first": {"dtype": "BF16", "shape": [4], "data_offsets": [8, 16]}})",
              16)},
      {"UnsupportedDtype",
       65,
       {"model.safetensors", "'first'", "'COMPLEX64'"},
       header(R"({"first": {"dtype": "COMPLEX64", "shape": [1], "data_offsets": [0, 8]}})", 8)},
      {"NotHdf5",
       65,
       {"model.h5", "not an HDF5 file"},
       [](const std::string& folder) {
         put_file(folder + "/model.h5", std::string(5000, 'x'));
         return folder + "/model.h5";
       }},
      {"DamagedHdf5",
       65,
       {"model.h5"},
       [](const std::string& folder) {
         put_file(folder + "/model.h5", "\x89HDF\r\n\x1a\n" + std::string(5000, 'x'));
         return folder + "/model.h5";
       }},
      {"TruncatedHdf5",
       65,
       {"model.h5"},
       [](const std::string& folder) {
         std::string path = folder + "/model.h5";
         EXPECT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", path})));
         const std::string bytes = get_file(path);
         put_file(path, bytes.substr(0, bytes.size() / 2));
         return path;
       }},
      {"IndexThatIsNoJson",
       65,
       {"model.safetensors.index.json", "not JSON"},
       [](const std::string& folder) {
         split(folder);
         put_file(folder + "/model.safetensors.index.json", "{");
         return folder;
       }},
      {"IndexedFileMissing",
       65,
       {"model.safetensors.index.json", "model-00002-of-00003.safetensors", "copy it"},
       [](const std::string& folder) {
         split(folder);
         std::filesystem::remove(folder + "/model-00002-of-00003.safetensors");
         return folder;
       }},
      {"IndexedFileTruncated",
       65,
       {"model-00003-of-00003.safetensors", "truncated"},
       [](const std::string& folder) {
         split(folder);
         const std::string path = folder + "/model-00003-of-00003.safetensors";
         const std::string bytes = get_file(path);
         put_file(path, bytes.substr(0, bytes.size() - 100));
         return folder;
       }},
      {"IndexThatNamesAnotherFile",
       65,
       {"model.safetensors.index.json", kNorm},
       [](const std::string& folder) {
         split(folder);
         const std::string path = folder + "/model.safetensors.index.json";
         auto index = read_json(path);
         auto& file = index["weight_map"][kNorm];
         file = file == "model-00001-of-00003.safetensors" ? "model-00002-of-00003.safetensors"
                                                           : "model-00001-of-00003.safetensors";
         put_file(path, index.dump());
         return folder;
       }},
  };
}

std::vector<BadSource> wrong_tensors() {
  return {
      {"MissingTensor", 65, {kExpert, "[64, 128]", "missing", "--model"}, changed([](SafetensorsFile& file) {
         file.tensors.erase(kExpert);
       })},
      {"ExtraTensor",
       65,
       {"model.layers.3.mlp.gate.weight", "[8, 128]", "not part of the model", "--model"},
       changed([](SafetensorsFile& file) {
         file.tensors["model.layers.3.mlp.gate.weight"] = file.tensors.at("model.layers.2.mlp.gate.weight");
       })},
      {"MisshapenTensor",
       65,
       {kExpert, "[128, 64]", "[64, 128]", "--model"},
       changed([](SafetensorsFile& file) {
         file.tensors.at(kExpert).shape = {128, 64};
       })},
      {"TensorOfOtherRank", 65, {kNorm, "[1, 16]", "[16]", "--model"}, changed([](SafetensorsFile& file) {
         file.tensors.at(kNorm).shape = {1, 16};
       })},
      {"UnwantedDtype", 65, {kNorm, "float16", "bfloat16"}, changed([](SafetensorsFile& file) {
         file.tensors.at(kNorm).dtype = "F16";
       })},
      {"Integers", 65, {kExpert, "int16", "bfloat16"}, changed([](SafetensorsFile& file) {
         file.tensors.at(kExpert).dtype = "I16";
       })},
  };
}

std::vector<BadSource> paths() {
  return {
      {"NotThere",
       74,
       {"/absent", "is not there", "safetensors"},
       [](const std::string& folder) { return folder + "/absent"; }},
      {"BelowAFile",
       74,
       {"/file/model", "is not there"},
       [](const std::string& folder) {
         put_file(folder + "/file", "no folder");
         return folder + "/file/model";
       }},
      {"LinkToNowhere",
       74,
       {"/link"},
       [](const std::string& folder) {
         std::filesystem::create_symlink(folder + "/absent", folder + "/link");
         return folder + "/link";
       }},
      {"LinkToItself",
       74,
       {"/link"},
       [](const std::string& folder) {
         std::filesystem::create_symlink(folder + "/link", folder + "/link");
         return folder + "/link";
       }},
      {"Device", 74, {"/dev/null", "no regular file"}, [](const std::string&) { return "/dev/null"; }},
      {"FolderWithoutACheckpoint",
       65,
       {"/empty", "no checkpoint", "model*.safetensors"},
       [](const std::string& folder) {
         put_file(folder + "/empty/config.json", get_file(trained(0) + "/config.json"));
         return folder + "/empty";
       }},
      {"FolderOfSeveralHdf5Files",
       65,
       {"a.h5", "b.h5", "name one"},
       [](const std::string& folder) {
         put_file(folder + "/a.h5", "x");
         put_file(folder + "/b.h5", "x");
         return folder;
       }},
  };
}

class BadSources : public CliTest, public ::testing::WithParamInterface<BadSource> {};

TEST_P(BadSources, IsRefusedBeforeAnythingMoves) {
  const std::string folder = dir_ / "source";
  put_file(folder + "/config.json", get_file(trained(0) + "/config.json"));
  const std::string source = GetParam().make(folder);
  put_old_shards();
  const auto before = folder_contents(sink_);
  const Words words = sync_words(source) + Words{"--model", trained(0) + "/config.json"};
  EXPECT_TRUE(refused(run_job(3, words), GetParam().code, GetParam().in_the_line));
  EXPECT_EQ(folder_contents(sink_), before);
  // The same without a job.
  EXPECT_TRUE(refused(run_plain({"plan", "--source", source, "--model", trained(0)}), GetParam().code,
                      GetParam().in_the_line));
}

constexpr auto kNameOf = [](const auto& test) { return test.param.name; };
INSTANTIATE_TEST_SUITE_P(Damaged, BadSources, ::testing::ValuesIn(damaged_files()), kNameOf);
INSTANTIATE_TEST_SUITE_P(Wrong, BadSources, ::testing::ValuesIn(wrong_tensors()), kNameOf);
INSTANTIATE_TEST_SUITE_P(Path, BadSources, ::testing::ValuesIn(paths()), kNameOf);

using BadSecondSource = CliTest;

TEST_F(BadSecondSource, IsRefusedBeforeTheFirstMoves) {
  put_old_shards();
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(0)) + Words{"--source", dir_ / "absent"}), 74,
                      {dir_ / "absent"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(BadSecondSource, UnreadableFile) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const std::string path = dir_ / "model.safetensors";
  std::filesystem::copy(trained(0) + "/model.safetensors", path);
  std::filesystem::permissions(path, std::filesystem::perms::none);
  EXPECT_TRUE(
      refused(run_job(3, sync_words(path) + Words{"--model", trained(0)}), 74, {path, "Permission denied"}));
}

/// Outputs that would make a second saving of the folder that is the source.
class OutputsBesideTheSource : public CliTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(done(run_plain({"convert", "--source", trained(0), "--output", folder_ + "/m.h5"})));
    put_file(folder_ + "/config.json", get_file(trained(0) + "/config.json"));
  }
  Words sync_to(const std::string& source, const std::string& sink) const {
    return {"sync", "--source", source, "--inference", "tp=2,ep=2", "--sink", "hdf5:" + sink};
  }

  std::string folder_ = dir_ / "source";
};

TEST_F(OutputsBesideTheSource, AreRefusedBeforeAnythingMoves) {
  const Words said{"--sink hdf5:", "is the source's folder", "two savings", "name another"};
  EXPECT_TRUE(refused(run_job(3, sync_to(folder_, folder_)), 64, said));
  EXPECT_TRUE(refused(run_job(3, sync_to(folder_, dir_ / "./source/")), 64, said));
  // Also of a later source.
  const std::string numbered = dir_ / "source-1";
  std::filesystem::copy(folder_, numbered);
  EXPECT_TRUE(refused(run_job(3, sync_to(folder_, dir_ / "source-{version}") + Words{"--source", numbered}),
                      64, said));
  EXPECT_TRUE(
      refused(run_plain({"convert", "--source", folder_, "--output", folder_ + "/new.h5"}), 64,
              {"--output " + folder_ + "/new.h5", "is the source's folder", "two savings", "name another"}));
  EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(1), "--output", folder_}), 64,
                      {"--output " + folder_, "two savings", folder_ + "/m.h5", "name another"}));
  EXPECT_EQ(folder_contents(folder_).size(), 2);
  // The folder is as readable as before, and so is a file that was named itself.
  EXPECT_TRUE(done(run_job(3, sync_to(folder_, sink_))));
  EXPECT_TRUE(done(run_job(3, sync_to(folder_ + "/m.h5", folder_))));
  EXPECT_TRUE(done(run_job(3, sync_to(folder_ + "/m.h5", folder_))));
  EXPECT_TRUE(refused(run_job(3, sync_to(folder_, sink_)), 65, {folder_, "3 HDF5 files", "name one"}));
}

TEST_F(OutputsBesideTheSource, Hdf5BesideSafetensors) {
  const std::string other = dir_ / "other";
  std::filesystem::copy(trained(1), other);
  const auto before = folder_contents(other);
  const Words said{"two savings", other + "/model.safetensors", "name another folder"};
  EXPECT_TRUE(refused(run_plain({"convert", "--source", folder_, "--output", other + "/x.h5"}), 64, said));
  EXPECT_TRUE(refused(
      run_plain({"synth", "--model", model_folder("tiny-qwen3"), "--output", other + "/x.h5"}), 64, said));
  EXPECT_TRUE(refused(run_job(3, sync_to(folder_, other)), 64, said));
  EXPECT_EQ(folder_contents(other), before);
}

TEST_F(OutputsBesideTheSource, TrainersShardsBesideAWholeCheckpoint) {
  std::filesystem::create_directory(dir_ / "both");
  for (const char* name : {"/config.json", "/model.safetensors"}) {
    std::filesystem::copy_file(trained(0) + name, dir_ / "both" + name);
  }
  std::filesystem::copy_file(trained(1) + "/model.safetensors", dir_ / "both" + "/trainer-0.safetensors");
  for (const Words& words : {Words{"convert", "--output", dir_ / "x"}, Words{"plan"}}) {
    EXPECT_TRUE(refused(run_plain(words + Words{"--source", dir_ / "both"}), 65,
                        {dir_ / "both", "model.safetensors"}));
  }
}

using SourceFolder = CliTest;

TEST_F(SourceFolder, ThatMayNotBeListed) {
  std::filesystem::copy(trained(0), dir_ / "model");
  ASSERT_EQ(::chmod(dir_.string().c_str(), 0755), 0);
  ASSERT_EQ(::chmod((dir_ / "model").c_str(), 0311), 0);
  const OtherUser other;
  for (const Words& words :
       {Words{"inspect", dir_ / "model"}, Words{"plan", "--source", dir_ / "model", "--inference", "tp=1"}}) {
    // Nobody has published there.
    EXPECT_TRUE(
        refused(run_plain(words), 74, {dir_ / "model", "Permission denied", "check the permissions"}));
  }
}

}  // namespace
}  // namespace weightcast::test_support
