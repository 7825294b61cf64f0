#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/control_block.h"
#include "live/manifest.hpp"
#include "storage/checkpoint.hpp"
#include "support/process.hpp"
#include "support/temp_dir.hpp"

namespace weightcast::engine {

using Words = std::vector<std::string>;

/// Waits until `done` says so; false when it does not within `limit`, after which nothing here ever waits.
template <typename Done>
bool within(std::chrono::seconds limit, Done done) {
  const auto give_up = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

/// What an exporter has published, as a bystander sees it: mapped to be read alone, and still there when the
/// exporter is dead.
class Watched {
 public:
  explicit Watched(const std::string& manifest_path);
  ~Watched();
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  const Manifest& manifest() const { return manifest_; }
  const weightcast_block& block() const { return *block_; }
  weightcast_state state() const;
  std::uint64_t update() const;
  bool at_rest() const;
  pid_t process() const { return static_cast<pid_t>(manifest_.pid); }
  bool lives() const;
  /// The process's and the block's state, in a line.
  std::string describe() const;

  /// Names the first tensor of the checkpoint whose bytes are not those in memory; empty when all are.
  std::string difference_from(const Checkpoint& checkpoint) const;

 private:
  Manifest manifest_;
  int file_ = -1;
  const weightcast_block* block_ = nullptr;
  std::vector<std::pair<const std::byte*, std::size_t>> segments_;
};

/// Two engines of two ranks that generate text from their published memory, over and over, and what it takes
/// to update them from a trainer. Of every version v the weights are those of step 0 when v is even, else
/// those of step 181.
class LiveEngines : public ::testing::Test {
 protected:
  static constexpr int kReplicas = 2;
  static constexpr int kTp = 2;
  static constexpr int kEngineRanks = kReplicas * kTp;
  /// How long anything may take that is no whole job, on a machine that has other things to do.
  static constexpr std::chrono::seconds kPatience{60};

  LiveEngines();
  ~LiveEngines() override;

  /// Starts an engine, which serves version 0, and waits until both of its ranks have published.
  void start_engine(int replica, const Words& more = {});
  /// Starts the trainer, which offers version `first`, then the next as soon as one has been read or has not
  /// been for `patience` seconds.
  void start_trainer(std::int64_t first, std::int64_t versions, const std::string& patience = "600");
  /// Kills what is left of an engine. Its texts are those of their versions up to then.
  void bury_engine(int replica);

  /// `mpirun … sync` from the trainer to the engines, or another command that takes the same.
  test_support::CommandLine sync_command(const Words& more = {}, const std::string& command = "sync") const;

  /// Ends all engines.
  void end_engines();

  const Watched& engine(int rank) const { return *engine_ranks_.at(static_cast<std::size_t>(rank)); }
  const Watched& trainer() const { return *trainer_rank_; }

  /// That each text that an engine has printed is wholly that of its version, and that it has printed none
  /// while its memory held no version. Counts its versions.
  void expect_true_texts(const test_support::Outcome& outcome);
  /// That the memory of an engine's rank holds what its block says.
  void expect_true_memory(int rank);

  /// That all engines come to serve that version, and have it, and that the trainer offers another.
  void expect_all_serve(std::int64_t version);
  /// That an update to what the trainer offers succeeds.
  void expect_a_good_update();

  /// All that is known of every process, for whoever looks into a failure.
  std::string describe_all() const;

  test_support::TempDir dir_;
  /// Where Open MPI keeps what a killed rank leaves behind.
  test_support::TempDir mpi_dir_{"/dev/shm"};
  std::string folder_ = dir_ / "weights";
  std::map<int, Checkpoint> shards_;  ///< by 2 · rank + (version mod 2)
  std::map<int, std::string> texts_;  ///< by version mod 2
  std::map<std::int64_t, int> seen_;  ///< texts of each version
  std::vector<std::unique_ptr<test_support::Process>> engines_;
  std::unique_ptr<test_support::Process> trainer_;

 private:
  test_support::CommandLine own_mpirun(int ranks, const Words& words) const;
  std::unique_ptr<Watched> published(Role role, int rank, const Watched* before,
                                     test_support::Process& process) const;

  std::vector<std::unique_ptr<Watched>> engine_ranks_;
  std::unique_ptr<Watched> trainer_rank_;
};

}  // namespace weightcast::engine
