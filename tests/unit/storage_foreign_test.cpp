// What lies in the place of a checkpoint.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "core/error.hpp"
#include "storage/foreign_file.hpp"
#include "storage/rank_file.hpp"
#include "storage_files.hpp"
#include "support/other_user.hpp"

namespace weightcast {
namespace {

using namespace testing_files;
namespace fs = std::filesystem;

class StorageForeign : public ::testing::Test {
 protected:
  std::string refused(const std::string& name) const {
    return message_of<InputError>([&] { read_checkpoint(dir_ / name); });
  }
  void put_checkpoint(const std::string& folder) const {
    fs::create_directories(dir_ / folder);
    put_file(dir_ / folder + "/model.safetensors", "x");
  }

  TempDir dir_;
};

TEST_F(StorageForeign, FoldersWithoutACheckpoint) {
  put_file(dir_ / "optimizer.safetensors", "");
  EXPECT_TRUE(has(refused(""), {dir_.string(), "holds no checkpoint"}));
}

TEST_F(StorageForeign, WhatLiesThereInstead) {
  const std::vector<std::pair<std::string, std::string>> files{
      {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"},
      {"<!DOCTYPE html><html>login</html>", "a web page"},
      {"<HTML><head>", "a web page"},
      {"<?xml version=\"1.0\"?><Error>AccessDenied</Error>", "a server's message"},
      {"{\"error\": \"not found\"}", "a server's message"},
      {"{\n  \"error\" : {\"code\": 404}}", "a server's message"},
      {"{\"detail\":\"Not found\"}", "a server's message"},
      {"<Error>\n<Code>NoSuchKey</Code></Error>", "a server's message"},
      {"Entry not found", "a server's message"},
      {"Invalid username or password.", "a server's message"},
      {"Access to model x is restricted.", "a server's message"},
      {"404: Not Found", "a text that begins '404: Not Found'; copy or download it again"},
      {"hello\nworld", "a text that begins 'hello'"},
      {"/annex/objects/SHA256E-s5--00.safetensors\n", "git annex get"},
      {"../../blobs/0123456789abcdef", "the text of a link"},
      {std::string("\xff\xfeh\0e\0l\0l\0o\0", 12), "UTF-16"},
      {std::string("h\0e\0l\0l\0o\0!\0", 12), "UTF-16"},
      {std::string("PK\x03\x04 and so on", 15), "torch.save"},
      {std::string("\x80\x02}q", 4) + std::string(20, 'x'), "torch.save"},
      {"GGUF" + std::string(1, '\3') + std::string(50, 'x'), "GGUF"},
      {std::string(600, '\0'), "zeros"},
      {"", "empty"},
      {std::string("\x1f\x8b\x08 packed bytes", 17), "gzip"},
      {std::string("\x93NUMPY\x01 array bytes", 20), "NumPy"},
  };
  for (const auto& [bytes, what] : files) {
    put_file(dir_ / "model.safetensors", bytes);
    EXPECT_TRUE(has(refused("model.safetensors"), {dir_ / "model.safetensors", what}));
    EXPECT_TRUE(has(refused(""), {dir_ / "model.safetensors", what}));
  }
  const TempDir other;
  for (const auto& [name, what] : std::vector<std::pair<std::string, std::string>>{
           {"__0_0.distcp", "distributed checkpoint"},
           {"pytorch_model.bin", "PyTorch files"},
           {"zero_pp_rank_3_mp_rank_00_model_states.pt", "zero_to_fp32.py"},
           {"mp_rank_00_model_states.pt", "zero_to_fp32.py"},
           {"model_optim_rng.pt", "Megatron"},
           {"model_world_size_8_rank_0.pt", "verl.model_merger"},
           {"model.gguf", "GGUF files"},
           {"model.safetensors.part", "download is unfinished"},
           {"a.safetensors.crdownload", "download is unfinished"},
           {"a.aria2", "download is unfinished"},
           {"trainer-0.safetensors", "trainers' shards"},
           {"adapter_model.safetensors", "an adapter"},
           {"consolidated.safetensors", "under other names"}}) {
    put_file(other / name, "x");
    EXPECT_TRUE(has(message_of<InputError>([&] { read_checkpoint(other.string()); }),
                    {other.string(), "holds no checkpoint", what, name}));
    fs::remove(other / name);
  }
  fs::create_directory(other / "step-7");
  put_file(other / "step-7/model.safetensors", "x");
  EXPECT_TRUE(has(message_of<InputError>([&] { read_checkpoint(other.string()); }), {"step-7", "name that"}));
}

TEST_F(StorageForeign, TextsOfACheckpointThatAreNamedThemselves) {
  put_checkpoint("step");
  put_file(dir_ / "step/config.json", "{}");
  const std::string said = refused("step/config.json");
  EXPECT_TRUE(
      has(said, {dir_ / "step/config.json", "no file of weights", "name its folder, " + (dir_ / "step")}));
  EXPECT_EQ(said.find("again"), std::string::npos) << said;
  // An index is another name of its folder's checkpoint, where it is one.
  put_file(dir_ / "step/model.safetensors.index.json", R"({"weight_map": {}})");
  EXPECT_TRUE(has(refused("step/model.safetensors.index.json"), {"its weight_map lists nothing"}));
}

TEST_F(StorageForeign, FoldersThatHoldCheckpoints) {
  const auto expect = [&](std::initializer_list<std::string_view> words) {
    const std::string said = refused("");
    EXPECT_TRUE(has(said, words));
    EXPECT_EQ(said.find("--trainer-alloc"), std::string::npos) << said;
  };
  expect({"holds no checkpoint", "name the folder that does"});
  put_checkpoint("checkpoint-500");
  expect({"its folder checkpoint-500 holds one; name that"});
  put_checkpoint("checkpoint-1000");
  put_checkpoint("checkpoint-90");
  expect({"3 of its folders hold one, checkpoint-1000 as the last; name the one that is meant"});
}

TEST_F(StorageForeign, SavingsOfTwoKindsInOneFolder) {
  const auto put_hdf5 = [&](const std::string& name) {
    create_hdf5(dir_ / name, {}, {{"w", DType::kU8, Shape{1}}})->commit();
  };
  const std::string safetensors =
      safetensors_bytes(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  put_file(dir_ / "model.safetensors", safetensors);
  for (const char* other : {"new.h5", "new.hdf5", "NEW.H5", "new.hdf", "trainer-0.h5", "rank-0.h5"}) {
    put_hdf5(other);
    EXPECT_TRUE(has(refused(""), {dir_.string(), "model.safetensors", other, "two savings", "name"}));
    // By its own name each of them can be read.
    EXPECT_EQ(read_checkpoint(dir_ / other).tensors.size(), 1);
    EXPECT_EQ(read_checkpoint(dir_ / "model.safetensors").tensors.size(), 1);
    fs::remove(dir_ / other);
  }
  put_file(dir_ / "trainer-0.safetensors", safetensors);
  EXPECT_TRUE(has(refused(""), {"model.safetensors", "trainer-0.safetensors", "two savings"}));
  fs::remove(dir_ / "model.safetensors");
  put_hdf5("new.h5");
  EXPECT_TRUE(has(refused(""), {"new.h5", "trainer-0.safetensors", "two savings"}));
  fs::remove(dir_ / "trainer-0.safetensors");
  EXPECT_EQ(read_checkpoint(dir_.string()).tensors.size(), 1);
  put_file(dir_ / "model.safetensors.index.json", R"({"weight_map": {"w": "a.safetensors"}})");
  EXPECT_TRUE(has(refused(""), {"model.safetensors.index.json", "new.h5", "two savings"}));
  // What others have not finished does not count.
  fs::remove(dir_ / "new.h5");
  put_file(dir_ / "a.safetensors", safetensors);
  put_hdf5(".new.h5");
  EXPECT_EQ(read_checkpoint(dir_.string()).tensors.size(), 1);
}

TEST_F(StorageForeign, FoldersDeeperDown) {
  fs::create_directories(dir_ / "deep/er");
  put_file(dir_ / "deep/er/__0_0.distcp", "x");
  EXPECT_TRUE(has(refused(""), {"distributed checkpoint", "deep/er/__0_0.distcp"}));
  put_checkpoint("actor/huggingface");
  EXPECT_TRUE(has(refused(""), {"its folder actor/huggingface holds one; name that"}));
  put_file(dir_ / "model_world_size_8_rank_0.pt", "x");
  EXPECT_TRUE(
      has(refused(""), {"verl.model_merger", "or name its folder actor/huggingface, which holds one"}));
}

TEST_F(StorageForeign, ACacheOfTheHub) {
  fs::create_directories(dir_ / "blobs");
  put_file(dir_ / "blobs/0123", "x");
  put_checkpoint("snapshots/abc");
  EXPECT_TRUE(has(refused(""), {"a cache of the Hugging Face hub; name its folder snapshots/abc"}));
  // Also where the config is asked for first.
  EXPECT_TRUE(has(message_of<InputError>([&] { read_config_text(dir_.string()); }),
                  {"name its folder snapshots/abc"}));
}

TEST_F(StorageForeign, ADownloadOfTheHubThatIsUnfinished) {
  fs::create_directories(dir_ / ".cache/huggingface/download");
  put_file(dir_ / ".cache/huggingface/download/model.safetensors.0123.incomplete", "x");
  EXPECT_TRUE(has(refused(""), {"download is unfinished", "model.safetensors.0123.incomplete", "finish it"}));
}

TEST_F(StorageForeign, WithoutWeightsTheConfigIsNotWhatIsMissing) {
  put_file(dir_ / "pytorch_model.bin", "x");
  EXPECT_TRUE(has(message_of<InputError>([&] { read_config_text(dir_.string()); }),
                  {"holds no checkpoint", "PyTorch"}));
  put_file(dir_ / "trainer-0.safetensors", "x");
  EXPECT_TRUE(
      has(message_of<IoError>([&] { read_config_text(dir_.string()); }), {"no config.json", "--model"}));
}

TEST_F(StorageForeign, AFolderIntoWhichNobodyMayLook) {
  put_checkpoint("closed");
  put_file(dir_ / "closed/config.json", "{}");
  put_file(dir_ / "closed/trainer-0.h5", "x");
  ASSERT_EQ(::chmod(dir_.string().c_str(), 0755), 0);
  ASSERT_EQ(::chmod((dir_ / "closed").c_str(), 0644), 0);
  const test_support::OtherUser other;
  // What may be there is not said to be missing.
  EXPECT_TRUE(has(message_of<IoError>([&] { read_config_text(dir_ / "closed"); }),
                  {"cannot look at", "closed/config.json", "check the permissions"}));
  EXPECT_TRUE(has(message_of<IoError>([&] { existing_rank_file(dir_ / "closed", kTrainerStem, 0); }),
                  {"cannot look at", "closed/trainer-0.safetensors", "check the permissions"}));
}

TEST_F(StorageForeign, WeightsInThePlaceOfAConfig) {
  put_file(dir_ / "a.safetensors", safetensors_bytes("{}", 3));
  EXPECT_TRUE(has(message_of<InputError>([&] { read_json_file(dir_ / "a.safetensors", 1 << 20); }),
                  {"a.safetensors", "a file of weights", "config.json"}));
}

TEST_F(StorageForeign, LongNamesAreCut) {
  const std::string name(3000, 'n');
  const auto header = [&](const std::string& tensor, const std::string& dtype) {
    put_file(
        dir_ / "x.safetensors",
        safetensors_bytes(
            fmt::format(R"({{"{}":{{"dtype":"{}","shape":[1],"data_offsets":[0,1]}}}})", tensor, dtype), 1));
    return refused("x.safetensors");
  };
  EXPECT_LT(header(name, "U16").size(), 300U);
  EXPECT_LT(header("w", name).size(), 300U);
  EXPECT_TRUE(has(header(std::string(5000, 'n'), "U8"), {"its name has 5000 bytes"}));
}

}  // namespace
}  // namespace weightcast
