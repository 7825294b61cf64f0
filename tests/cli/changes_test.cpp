// Sources that somebody replaces or writes to while a job is at work.

#include <thread>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

using namespace std::chrono_literals;

class Changes : public CliTest {
 protected:
  /// Starts a job in which every read of a file of that name takes a second longer, and waits until it reads
  /// it.
  std::unique_ptr<Process> start_slow(const Words& words, const std::string& file) const {
    auto job = std::make_unique<Process>(job_command(
        3, words,
        {{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK}, {"SLOW_DISK_FILE", file}, {"SLOW_DISK_SECONDS", "1"}}));
    while (!opened(*job, file)) {
      if (job->running()) continue;
      ADD_FAILURE() << describe(job->wait());
      break;
    }
    return job;
  }

  /// Whether a rank has a file of that name open.
  static bool opened(const Process& job, const std::string& name) {
    for (const pid_t rank : job.children()) {
      std::error_code ignored;  // files are opened and closed meanwhile
      std::filesystem::directory_iterator fd("/proc/" + std::to_string(rank) + "/fd", ignored);
      for (const std::filesystem::directory_iterator end; fd != end; fd.increment(ignored)) {
        if (std::filesystem::read_symlink(fd->path(), ignored).filename() == name) return true;
      }
    }
    return false;
  }

  /// A copy of a version under another name, complete with its config.
  std::string copy_of(int step, const std::string& name) const {
    const std::string path = dir_ / name;
    put_file(path, get_file(trained(step) + "/model.safetensors"));
    put_file(dir_ / "config.json", get_file(trained(step) + "/config.json"));
    return path;
  }
};

TEST_F(Changes, ASourceThatIsReplacedIsRefused) {
  const std::string source = copy_of(0, "source.safetensors");
  put_old_shards();
  const auto before = folder_contents(sink_);
  const auto job = start_slow(sync_words(source), "source.safetensors");
  // Of the same size, with the same header.
  std::filesystem::rename(copy_of(1, "new"), source);
  EXPECT_TRUE(refused(job->wait(), 74, {source, "changed after its header was read", "start again"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(Changes, ASourceThatIsWrittenToIsRefused) {
  const std::string source = copy_of(0, "source.safetensors");
  put_old_shards();
  const auto before = folder_contents(sink_);
  const auto job = start_slow(sync_words(source), "source.safetensors");
  flip_bit(source, get_file(source).size() - 1);
  EXPECT_TRUE(refused(job->wait(), 74, {source, "changed after its header was read"}));
  EXPECT_EQ(folder_contents(sink_), before);
}

TEST_F(Changes, ALaterSourceIsTheOneThatIsThereAtItsTurn) {
  const std::string first = copy_of(0, "first.safetensors");
  const std::string later = copy_of(0, "later.safetensors");
  const auto job = start_slow(sync_words(first) + Words{"--source", later}, "first.safetensors");
  std::filesystem::rename(copy_of(181, "new"), later);
  EXPECT_TRUE(done(job->wait()));
  EXPECT_TRUE(done(run_plain({"verify", sink_, "--source", trained(181), "--weight-version", "1"})));
}

}  // namespace
}  // namespace weightcast::test_support
