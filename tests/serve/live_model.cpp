#include "serve/live_model.hpp"

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "engine/files.hpp"
#include "storage/checkpoint.hpp"
#include "support/client_call.hpp"
#include "support/files.hpp"
#include "support/process.hpp"

namespace weightcast::test_support {

namespace {

int step_of(std::int64_t version) {
  return version % 2 == 0 ? 0 : 181;
}

std::string shard_of(const std::string& scratch, int step, int rank) {
  return scratch + "/step" + std::to_string(step) + "/rank-" + std::to_string(rank) + ".h5";
}

}  // namespace

std::string model_of_step(int step) {
  return std::string(WEIGHTCAST_TEST_DATA "/python-coder-qwen3-moe/step") + std::to_string(step);
}

LiveModel::LiveModel(std::string folder, const std::string& scratch, int trainers)
    : folder_(std::move(folder)),
      scratch_(scratch),
      trainers_(static_cast<std::size_t>(trainers)),
      engines_(kEngines) {
  for (const int step : {0, 181}) {
    const Outcome cut = run({{WEIGHTCAST_ENGINE_CUT, "--checkpoint", model_of_step(step), "--out",
                              scratch_ + "/step" + std::to_string(step), "--tp", "2", "--ep", "2",
                              "--replicas", "2", "--moe-layout", "triton"},
                             {}});
    if (cut.exit_code != 0) throw std::runtime_error(describe(cut));
  }
  for (int trainer = 0; trainer < trainers; ++trainer) start_trainer(trainer);
  for (int rank = 0; rank < kEngines; ++rank) start_engine(rank);
}

void LiveModel::start_trainer(int trainer) {
  const engine::Exporter exporter{folder_, "trainer", trainer, static_cast<int>(trainers_.size())};
  trainers_.at(static_cast<std::size_t>(trainer)) =
      std::make_unique<engine::Published>(exporter, read_checkpoint(model_of_step(0)), 0);
}

void LiveModel::stop_trainer(int trainer) {
  trainers_.at(static_cast<std::size_t>(trainer)).reset();
}

void LiveModel::start_engine(int engine, std::int64_t version) {
  Engine& started = engines_.at(static_cast<std::size_t>(engine));
  const std::string shard = shard_of(scratch_, step_of(version), engine);
  started.published = std::make_unique<engine::Published>(
      engine::Exporter{folder_, "engine", engine, kEngines}, read_checkpoint(shard), version);
  started.version = version;
  started.thread = std::jthread([this, &started](const std::stop_token& stop) { answer(stop, started); });
}

void LiveModel::stop_engine(int engine) {
  Engine& stopped = engines_.at(static_cast<std::size_t>(engine));
  stopped.thread = {};
  stopped.published.reset();
}

void LiveModel::answer(const std::stop_token& stop, Engine& engine) {
  weightcast_export* const handle = engine.published->handle();
  constexpr double kSeconds = 60;
  for (; !stop.stop_requested(); std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
    std::int64_t version = 0;
    if (hold_ || weightcast_wanted(handle, &version) != 1) continue;
    if (declines_) {
      weightcast_decline(handle, reason_.c_str());
    } else if (weightcast_pause(handle, kSeconds, &version) == WEIGHTCAST_OK) {
      engine.version = version;
      weightcast_resume(handle);
    }
  }
}

void LiveModel::decline(std::string reason) {
  reason_ = std::move(reason);
  declines_ = true;
}

bool LiveModel::is_asked(int engine) const {
  std::int64_t version = 0;
  return weightcast_wanted(engines_.at(static_cast<std::size_t>(engine)).published->handle(), &version) == 1;
}

void LiveModel::offer(int trainer, std::int64_t version) {
  engine::Published& published = *trainers_.at(static_cast<std::size_t>(trainer));
  published.load(read_checkpoint(model_of_step(step_of(version))));
  check(weightcast_offer(published.handle(), version, 0));
}

void LiveModel::offer(std::int64_t version) {
  for (int trainer = 0; trainer < static_cast<int>(trainers_.size()); ++trainer) offer(trainer, version);
}

bool LiveModel::settle(double seconds) {
  bool read = true;
  for (const auto& trainer : trainers_) {
    read = weightcast_settle(trainer->handle(), seconds) == WEIGHTCAST_OK && read;
  }
  return read;
}

std::string LiveModel::memory_of(const std::string& role, int rank) const {
  const auto manifest =
      nlohmann::json::parse(get_file(folder_ + "/" + role + "-" + std::to_string(rank) + ".json"));
  return "/dev/shm" + manifest.at("segments").at(0).at("name").get<std::string>();
}

std::string LiveModel::difference(std::int64_t version) const {
  return difference([=](const std::string&) { return version; });
}

std::string LiveModel::difference(
    const std::function<std::int64_t(const std::string& parameter)>& version_of) const {
  for (int rank = 0; rank < kEngines; ++rank) {
    const engine::FileSource even(shard_of(scratch_, step_of(0), rank));
    const engine::FileSource odd(shard_of(scratch_, step_of(1), rank));
    const engine::Published& published = *engines_.at(static_cast<std::size_t>(rank)).published;
    for (const std::string& name : even.names()) {
      const engine::FileSource& expected = version_of(name) % 2 == 0 ? even : odd;
      if (published.read(name).values != expected.read(name).values)
        return name + " of engine " + std::to_string(rank);
    }
  }
  return {};
}

void LiveModel::invalidate_engine(int engine) {
  check(weightcast_invalidate(engines_.at(static_cast<std::size_t>(engine)).published->handle(), "a test"));
}

}  // namespace weightcast::test_support
