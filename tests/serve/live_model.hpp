#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/published.hpp"

namespace weightcast::test_support {

/// A small trained model whose ranks have published their memory, all in this process: trainers, each with
/// the whole of it, and two engine replicas of tp=2, ep=2. Version v has the weights of step 0 when v is
/// even, else those of step 181.
class LiveModel {
 public:
  static constexpr int kEngines = 4;

  /// `scratch` is for files; engines serve version 0.
  LiveModel(std::string folder, const std::string& scratch, int trainers = 2);

  /// All trainers offer that version, and go on.
  void offer(std::int64_t version);
  void offer(int trainer, std::int64_t version);
  /// Waits until it has been read; false when it was not, and it is not offered any more.
  bool settle(double seconds = 60);

  /// Engines that hold do not answer; those with a reason decline.
  void hold(bool yes) { hold_ = yes; }
  void decline(std::string reason);
  void accept() { declines_ = false; }
  bool is_asked(int engine) const;
  /// The version that an engine serves.
  std::int64_t version_of_engine(int engine) const {
    return engines_.at(static_cast<std::size_t>(engine)).version;
  }

  /// Goes, and comes back with another memory: an engine as version `version`.
  void stop_engine(int engine);
  void start_engine(int engine, std::int64_t version = 0);
  void stop_trainer(int trainer);
  void start_trainer(int trainer);
  /// The file of an exporter's shared memory, as in the list of a process's maps.
  std::string memory_of_engine(int engine) const { return memory_of("engine", engine); }
  std::string memory_of_trainer(int trainer) const { return memory_of("trainer", trainer); }

  /// The first parameter of any engine that is not that version's, or not of the version that is said of it;
  /// empty where all are.
  std::string difference(std::int64_t version) const;
  std::string difference(const std::function<std::int64_t(const std::string& parameter)>& version_of) const;

  /// An engine says that it has no version any more.
  void invalidate_engine(int engine);

 private:
  struct Engine {
    std::unique_ptr<engine::Published> published;
    std::atomic<std::int64_t> version = 0;
    std::jthread thread;
  };

  void answer(const std::stop_token& stop, Engine& engine);
  std::string memory_of(const std::string& role, int rank) const;

  std::string folder_;
  std::string scratch_;
  std::atomic<bool> hold_ = false;
  std::atomic<bool> declines_ = false;
  std::string reason_;
  std::vector<std::unique_ptr<engine::Published>> trainers_;
  std::vector<Engine> engines_;
};

/// The model of a step, a folder with config.json.
std::string model_of_step(int step);

}  // namespace weightcast::test_support
