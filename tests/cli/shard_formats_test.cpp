// --sink safetensors:DIR: the same shards as HDF5's, and no folder with both.

#include <set>
#include <variant>

#include "cli/cli.hpp"
#include "storage/attributes.hpp"

namespace weightcast::test_support {
namespace {

class ShardFormats : public CliTest {
 protected:
  static Words sync_words(const std::string& source, const std::string& sink, const Words& more = {}) {
    return Words{"sync", "--source", source, "--sink", sink} + more;
  }
  std::string safetensors() const { return "safetensors:" + sink_; }
  std::string hdf5() const { return "hdf5:" + sink_; }

  Outcome verify(const std::string& source) const { return run_plain({"verify", sink_, "--source", source}); }

  /// The names in the sink.
  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(sink_))
      names.insert(entry.path().filename().string());
    return names;
  }

  /// What both formats have in common, by rank and name without the file's extension.
  static std::map<std::string, std::string> contents(const std::string& folder,
                                                     const std::string& extension) {
    std::map<std::string, std::string> all;
    for (auto& [name, bytes] : shard_contents(folder)) {
      std::string key = name;
      const std::size_t at = key.find(extension);
      EXPECT_NE(at, std::string::npos) << name;
      key.erase(at, extension.size());
      all.emplace(key, bytes);
    }
    for (const char* rank : {"rank-0", "rank-1"}) {
      for (const auto& [name, value] : read_attributes(folder + "/" + rank + extension)) {
        // Each update has another one.
        if (name == "update") continue;
        all[std::string(rank) + ", " + name] = std::holds_alternative<std::int64_t>(value)
                                                   ? std::to_string(std::get<std::int64_t>(value))
                                                   : std::get<std::string>(value);
      }
    }
    return all;
  }
};

TEST_F(ShardFormats, HoldTheSame) {
  const std::string source = dir_ / "model";
  EXPECT_TRUE(done(run_plain({"synth", "--model", model_folder("block-qwen3-moe"), "--output", source})));
  for (const Words& options : {Words{}, Words{"--quantize", "fp8-block:ue8m0", "--moe-layout", "deepgemm"},
                               Words{"--quantize", "mxfp4", "--moe-layout", "trtllm"},
                               Words{"--quantize", "nvfp4", "--moe-layout", "cutlass"}}) {
    std::map<std::string, std::map<std::string, std::string>> held;
    for (const std::string format : {"hdf5", "safetensors"}) {
      const std::string folder = dir_ / format;
      EXPECT_TRUE(done(
          run_job(3, sync_words(source, format + ":" + folder,
                                Words{"--inference", "tp=2", "--weight-version", "12345678901"} + options))));
      const Outcome verified = run_plain({"verify", folder, "--source", source});
      EXPECT_TRUE(done(verified));
      EXPECT_TRUE(has(verified.out, {"2 shards of version 12345678901"}));
      held[format] = contents(folder, format == "hdf5" ? ".h5" : ".safetensors");
    }
    EXPECT_GT(held["hdf5"].size(), 20);
    EXPECT_TRUE(held["hdf5"] == held["safetensors"]);
  }
}

TEST_F(ShardFormats, AnUpdateReplacesShardsOfTheOtherOne) {
  const Words four{"--inference", "tp=2,replicas=2"};
  const Words two{"--inference", "tp=2"};
  EXPECT_TRUE(done(run_job(5, sync_words(trained(0), hdf5(), four))));
  EXPECT_TRUE(done(run_job(3, sync_words(trained(1), safetensors(), two))));
  EXPECT_EQ(names(), (std::set<std::string>{"rank-0.safetensors", "rank-1.safetensors"}));
  EXPECT_TRUE(done(verify(trained(1))));
  EXPECT_TRUE(done(run_job(5, sync_words(trained(181), safetensors(), four))));
  EXPECT_EQ(names().size(), 4);
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0), hdf5(), two))));
  EXPECT_EQ(names(), (std::set<std::string>{"rank-0.h5", "rank-1.h5"}));
  EXPECT_TRUE(done(verify(trained(0))));
}

TEST_F(ShardFormats, OneVersionAFolder) {
  const std::string folders = dir_ / "v{version}";
  EXPECT_TRUE(done(run_job(2, sync_words(trained(0), "safetensors:" + folders, {"--source", trained(1)}))));
  for (const int version : {0, 1}) {
    EXPECT_TRUE(done(run_plain({"verify", dir_ / ("v" + std::to_string(version)), "--source",
                                trained(version), "--weight-version", std::to_string(version)})));
  }
}

TEST_F(ShardFormats, AFolderWithBothIsRefusedByReaders) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0), safetensors(), {"--inference", "tp=2"}))));
  const std::string other = dir_ / "other";
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0), "hdf5:" + other, {"--inference", "tp=2"}))));
  std::filesystem::copy(other + "/rank-1.h5", sink_ + "/rank-1.h5");
  EXPECT_TRUE(refused(verify(trained(0)), 65,
                      {sink_, "mixed shards", "rank-0.safetensors and rank-1.h5", "two formats", "remove"}));
  EXPECT_TRUE(refused(run_plain({"inspect", sink_}), 65, {"rank-1.h5", "rank-0.safetensors", "two formats"}));
  // This program's own go with the next update.
  EXPECT_TRUE(done(run_job(3, sync_words(trained(1), safetensors(), {"--inference", "tp=2"}))));
  EXPECT_TRUE(done(verify(trained(1))));
}

TEST_F(ShardFormats, AFileOfOthersBesideAShardIsRefusedAndStays) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0), safetensors(), {"--inference", "tp=2"}))));
  put_file(sink_ + "/rank-1.h5", "a text");
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(1), safetensors(), {"--inference", "tp=2"})), 74,
                      {"rank 2", sink_ + "/rank-1.h5", "does not say that this program wrote it", "remove"}));
  EXPECT_TRUE(folder_contents(sink_) == before);
  std::filesystem::remove(sink_ + "/rank-1.h5");
  // A checkpoint with a shard's name is none.
  std::filesystem::copy(trained(0) + "/model.safetensors", sink_ + "/rank-0.safetensors",
                        std::filesystem::copy_options::overwrite_existing);
  const auto mixed = folder_contents(sink_);
  EXPECT_TRUE(refused(run_job(3, sync_words(trained(1), safetensors(), {"--inference", "tp=2"})), 74,
                      {"rank 1", sink_ + "/rank-0.safetensors", "does not say that this program wrote it"}));
  EXPECT_TRUE(folder_contents(sink_) == mixed);
  EXPECT_TRUE(refused(verify(trained(0)), 65, {sink_ + "/rank-0.safetensors", "shard file"}));
}

TEST_F(ShardFormats, AFileThatIsTooLargeLeavesTheOldOnes) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0), hdf5(), {"--inference", "tp=2"}))));
  const auto before = folder_contents(sink_);
  // The limit counts for shared memory too, so Open MPI must do without.
  CommandLine command = mpirun(3, Words{"sh", "-c", "ulimit -f 256; exec \"$0\" \"$@\"", WEIGHTCAST_BINARY} +
                                      sync_words(trained(1), safetensors(), {"--inference", "tp=2"}));
  command.environment["OMPI_MCA_btl"] = "self,tcp";
  EXPECT_TRUE(refused(run(command), 74, {sink_ + "/rank-", "File too large", "free some space"}));
  EXPECT_TRUE(folder_contents(sink_) == before);
}

TEST_F(ShardFormats, AreNoCheckpoints) {
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0), safetensors(), {"--inference", "tp=2"}))));
  const std::string shard = sink_ + "/rank-0.safetensors";
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(
      refused(run_plain({"convert", "--source", shard, "--model", trained(0), "--output", dir_ / "o.h5"}), 65,
              {shard, "an inference rank's shard"}));
  EXPECT_TRUE(
      refused(run_plain({"convert", "--source", sink_, "--model", trained(0), "--output", dir_ / "o.h5"}), 65,
              {sink_, "shards of inference ranks"}));
  EXPECT_TRUE(refused(run_plain({"convert", "--source", trained(0), "--output", sink_}), 64,
                      {sink_, "two savings", "rank-0.safetensors"}));
  // Of HDF5 several files are not told from one another by their names alone.
  EXPECT_TRUE(done(run_job(3, sync_words(trained(0), "hdf5:" + (dir_ / "h"), {"--inference", "tp=2"}))));
  EXPECT_TRUE(refused(run_plain({"plan", "--source", dir_ / "h", "--inference", "tp=2"}), 65,
                      {dir_ / "h", "shards of inference ranks"}));
  EXPECT_TRUE(folder_contents(sink_) == before);
  EXPECT_TRUE(has(run_plain({"inspect", sink_}).out, {"2 shards of version 0"}));
  const Outcome inspected = run_plain({"inspect", shard});
  EXPECT_TRUE(done(inspected));
  EXPECT_TRUE(has(inspected.out, {"# kind: shard", "# rank: 0", "# tp_size: 2", "# moe_layout: triton"}));
}

TEST_F(ShardFormats, AreNotWrittenOverTheSource) {
  std::filesystem::create_directory(sink_);
  const std::string source = sink_ + "/rank-3.safetensors";
  std::filesystem::copy(trained(0) + "/model.safetensors", source);
  std::filesystem::copy(trained(0) + "/config.json", sink_ + "/config.json");
  const auto before = folder_contents(sink_);
  EXPECT_TRUE(
      refused(run_job(2, sync_words(source, safetensors())), 64,
              {"--sink safetensors:" + sink_, "rank-3.safetensors of the source", "name another folder"}));
  std::filesystem::rename(source, sink_ + "/model.safetensors");
  EXPECT_TRUE(refused(run_job(2, sync_words(trained(1), safetensors())), 64,
                      {"--sink safetensors:" + sink_, "two savings", "model.safetensors is there"}));
  std::filesystem::rename(sink_ + "/model.safetensors", source);
  EXPECT_TRUE(folder_contents(sink_) == before);
  EXPECT_TRUE(refused(run_job(2, sync_words(trained(0), "safetensors:")), 64,
                      {"--sink safetensors:", "safetensors:DIR"}));
}

}  // namespace
}  // namespace weightcast::test_support
