// Engines that say where their experts sit, and move them: what updates then bring where.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <thread>

#include "core/float_bits.hpp"
#include "engine/files.hpp"
#include "engine/published.hpp"
#include "serve/live_model.hpp"
#include "serve/server.hpp"
#include "storage/checkpoint.hpp"
#include "support/client_call.hpp"
#include "support/files.hpp"
#include "support/temp_dir.hpp"

namespace weightcast::test_support {

namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kLayers = 3;
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kSlots = 12;
constexpr int kRanks = 2;
constexpr std::int64_t kOwnSlots = kSlots / kRanks;
constexpr std::size_t kMatrixBytes = std::size_t{64} * 128 * 2;  // of an expert's gate, up or down

/// A trainer and an engine of tp=2, ep=2 with four redundant experts, all in this process. Version v has the
/// weights of step 0 when v is even, else those of step 181.
class MovingExperts : public ::testing::Test {
 protected:
  MovingExperts() {
    for (int map = 0; map < 3; ++map) put_map(map);
    trainer_ = std::make_unique<engine::Published>(engine::Exporter{folder_, "trainer", 0, 1},
                                                   read_checkpoint(model_of_step(0)), 0);
    for (int rank = 0; rank < kRanks; ++rank) start(rank, 0, maps_[0]);
  }

  static Words layout() { return {"--inference", "tp=2,ep=2", "--model", model_of_step(0)}; }

  std::string map_file(int map) const { return dir_ / ("map-" + std::to_string(map) + ".json"); }

  /// The shard of an engine's rank that has version `version` by that map, as `sync` writes it to files.
  std::string shard(int map, std::int64_t version, int rank) {
    const int step = version % 2 == 0 ? 0 : 181;
    const std::string folder = dir_ / ("shards-" + std::to_string(map) + "-" + std::to_string(step));
    if (!std::filesystem::exists(folder)) {
      const Outcome cut =
          run(mpirun(3, {WEIGHTCAST_BINARY, "sync", "--source", model_of_step(step), "--inference",
                         "tp=2,ep=2", "--expert-map", map_file(map), "--sink", "hdf5:" + folder}));
      if (cut.exit_code != 0) throw std::runtime_error(describe(cut));
    }
    return folder + "/rank-" + std::to_string(rank) + ".h5";
  }

  CommandLine job(const std::string& command, const Words& more = {}) const {
    Words words{WEIGHTCAST_BINARY, command,         "--source", "live:" + folder_, "--sink",
                "live:" + folder_, "--bucket-size", "64KiB",    "--timeout",       "60"};
    for (const Words& others : {layout(), more}) words.insert(words.end(), others.begin(), others.end());
    return mpirun(3, words);
  }

  /// A job that moves the engines' experts.
  CommandLine rebalance_job(const std::string& from, const std::string& to) const {
    Words words{WEIGHTCAST_BINARY, "rebalance",       "--from",        from,    "--to",      to,
                "--sink",          "live:" + folder_, "--bucket-size", "64KiB", "--timeout", "60"};
    const Words others = layout();
    words.insert(words.end(), others.begin(), others.end());
    return mpirun(kRanks, words);
  }

  /// Whether both ranks' engines say that they have this map.
  bool have(const engine::ExpertSlots& map) const {
    return std::ranges::all_of(ranks_, [&](const Rank& rank) {
      std::vector<std::int64_t> slots(static_cast<std::size_t>(kLayers * kSlots));
      std::int64_t epoch = 0;
      check(weightcast_placed_experts(rank.published->handle(), &epoch, slots.data()));
      return epoch == map.epoch && slots == map.flat();
    });
  }

  void offer(std::int64_t version) {
    trainer_->load(read_checkpoint(model_of_step(version % 2 == 0 ? 0 : 181)));
    check(weightcast_offer(trainer_->handle(), version, 0));
  }
  bool settle() { return weightcast_settle(trainer_->handle(), 60) == WEIGHTCAST_OK; }

  /// The engine moves its experts, which have version `version`, from one map to another.
  void move_experts(int map, std::int64_t version) {
    for (int rank = 0; rank < kRanks; ++rank) {
      engine::Published& published = *ranks_[static_cast<std::size_t>(rank)].published;
      published.load(read_checkpoint(shard(map, version, rank)));
      check(weightcast_place_experts(published.handle(), maps_[static_cast<std::size_t>(map)].epoch,
                                     maps_[static_cast<std::size_t>(map)].flat().data()));
    }
  }

  /// The first parameter that is not what version `version` by that map is; empty where all are.
  std::string difference(int map, std::int64_t version) {
    for (int rank = 0; rank < kRanks; ++rank) {
      const engine::FileSource expected(shard(map, version, rank));
      const engine::Published& published = *ranks_[static_cast<std::size_t>(rank)].published;
      for (const std::string& name : expected.names()) {
        if (published.read(name).values != expected.read(name).values)
          return name + " of rank " + std::to_string(rank);
      }
    }
    return {};
  }

  /// Where a parameter of a rank is, as long as nothing changes.
  std::byte* memory_of(int rank, const std::string& name) {
    weightcast_export* const handle = ranks_[static_cast<std::size_t>(rank)].published->handle();
    weightcast_reference reference = {};
    void* memory = nullptr;
    check(weightcast_refer(handle, name.c_str(), &reference));
    check(weightcast_resolve(handle, &reference, &memory, nullptr));
    return static_cast<std::byte*>(memory);
  }

  static std::string experts_of(std::int64_t layer) {
    return "model.layers." + std::to_string(layer) + ".mlp.experts.";
  }

  /// A copy of an expert that is not the trainer's of version `version`, where the engine has map `map`;
  /// empty where all are.
  std::string wrong_copy(const engine::ExpertSlots& map, std::int64_t version) {
    const Checkpoint checkpoint = read_checkpoint(model_of_step(version % 2 == 0 ? 0 : 181));
    const CheckpointReader trainer(checkpoint);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      for (std::int64_t slot = 0; slot < kSlots; ++slot) {
        const std::int64_t expert =
            map.experts_of_slots[static_cast<std::size_t>(layer)][static_cast<std::size_t>(slot)];
        const int rank = static_cast<int>(slot / kOwnSlots);
        std::array<std::size_t, 2> at{0, 0};
        for (const auto& [matrix, parameter] :
             {std::pair("gate_proj", 0), std::pair("up_proj", 0), std::pair("down_proj", 1)}) {
          const StoredTensor& tensor =
              *checkpoint.find(experts_of(layer) + std::to_string(expert) + "." + matrix + ".weight");
          std::vector<std::byte> expected(static_cast<std::size_t>(tensor.bytes()));
          trainer.read(tensor, Box::whole(tensor.shape), expected);
          const std::string name = experts_of(layer) + (parameter == 0 ? "w13_weight" : "w2_weight");
          const std::size_t slab = expected.size() * (parameter == 0 ? 2 : 1);
          const std::byte* const held = memory_of(rank, name) +
                                        static_cast<std::size_t>(slot % kOwnSlots) * slab +
                                        at[static_cast<std::size_t>(parameter)];
          at[static_cast<std::size_t>(parameter)] += expected.size();
          if (!std::equal(expected.begin(), expected.end(), held)) {
            return name + ", slot " + std::to_string(slot) + ", expert " + std::to_string(expert);
          }
        }
      }
    }
    return {};
  }

  /// The engine moves its experts in its own memory, slab by slab.
  void rebalance(const engine::ExpertSlots& from, const engine::ExpertSlots& to) {
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      const auto& before = from.experts_of_slots[static_cast<std::size_t>(layer)];
      const auto& after = to.experts_of_slots[static_cast<std::size_t>(layer)];
      for (const auto& [parameter, slab] :
           {std::pair<std::string, std::size_t>("w13_weight", 2 * kMatrixBytes),
            {"w2_weight", kMatrixBytes}}) {
        const std::string name = experts_of(layer) + parameter;
        std::vector<std::byte> all;
        for (int rank = 0; rank < kRanks; ++rank) {
          const std::byte* const memory = memory_of(rank, name);
          all.insert(all.end(), memory, memory + kOwnSlots * slab);
        }
        for (std::size_t slot = 0; slot < after.size(); ++slot) {
          const auto held = static_cast<std::size_t>(std::ranges::find(before, after[slot]) - before.begin());
          std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(held * slab), slab,
                      memory_of(static_cast<int>(slot / kOwnSlots), name) + slot % kOwnSlots * slab);
        }
      }
    }
    for (const Rank& rank : ranks_) {
      check(weightcast_place_experts(rank.published->handle(), to.epoch, to.flat().data()));
    }
  }

  void start(int rank, std::int64_t version, const engine::ExpertSlots& map) {
    Rank& started = ranks_[static_cast<std::size_t>(rank)];
    started.thread = {};
    started.published.reset();
    started.published =
        std::make_unique<engine::Published>(engine::Exporter{folder_, "engine", rank, kRanks},
                                            read_checkpoint(shard(0, version, rank)), version, &map);
    started.thread = std::jthread([this, &started](const std::stop_token& stop) { answer(stop, started); });
  }

  static engine::ExpertSlots random_map(std::mt19937_64& random, std::int64_t epoch) {
    engine::ExpertSlots map{epoch, kExperts, {}};
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<std::int64_t>& slots = map.experts_of_slots.emplace_back();
      for (std::int64_t slot = 0; slot < kSlots; ++slot) {
        slots.push_back(slot < kExperts ? slot : static_cast<std::int64_t>(random() % kExperts));
      }
      std::shuffle(slots.begin(), slots.end(), random);
    }
    return map;
  }

  bool wait_until_asked() const {
    const auto give_up = std::chrono::steady_clock::now() + 60s;
    for (const Rank& rank : ranks_) {
      std::int64_t version = 0;
      while (weightcast_wanted(rank.published->handle(), &version) != 1) {
        if (std::chrono::steady_clock::now() > give_up) return false;
        std::this_thread::sleep_for(1ms);
      }
    }
    return true;
  }

  struct Rank {
    std::unique_ptr<engine::Published> published;
    std::jthread thread;
  };

  void answer(const std::stop_token& stop, Rank& rank) {
    weightcast_export* const handle = rank.published->handle();
    for (; !stop.stop_requested(); std::this_thread::sleep_for(1ms)) {
      std::int64_t version = 0;
      if (hold_ || weightcast_wanted(handle, &version) != 1) continue;
      if (weightcast_pause(handle, 60, &version) == WEIGHTCAST_OK) weightcast_resume(handle);
    }
  }

  void put_map(int number) {
    std::mt19937_64 random(static_cast<std::uint64_t>(number));
    engine::ExpertSlots& map = maps_[static_cast<std::size_t>(number)];
    map = random_map(random, 10 + number);
    put_map_file(map_file(number), map);
  }

  static void put_map_file(const std::string& path, const engine::ExpertSlots& map) {
    const nlohmann::json text = {{"expert_map", 1},
                                 {"epoch", map.epoch},
                                 {"layers", kLayers},
                                 {"experts", kExperts},
                                 {"slots", kSlots},
                                 {"ep", kRanks},
                                 {"experts_of_slots", map.experts_of_slots}};
    put_file(path, text.dump());
  }

  TempDir dir_{"/tmp"};
  std::string folder_ = dir_ / "weights";
  std::array<engine::ExpertSlots, 3> maps_;
  std::atomic<bool> hold_ = false;
  std::unique_ptr<engine::Published> trainer_;
  std::array<Rank, kRanks> ranks_;
};

TEST_F(MovingExperts, AJobGoesWhereTheEngineSaysAndSaysSo) {
  offer(1);
  const Outcome first = run(job("sync", {"--json", dir_ / "report.json"}));
  ASSERT_EQ(first.exit_code, 0) << describe(first);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(0, 1), "");
  EXPECT_EQ(nlohmann::json::parse(get_file(dir_ / "report.json")).at("expert_epoch"), 10);

  move_experts(1, 1);
  EXPECT_EQ(difference(1, 1), "");
  offer(2);
  const Outcome second = run(job("sync"));
  ASSERT_EQ(second.exit_code, 0) << describe(second);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(1, 2), "");
  EXPECT_NE(difference(0, 2), "");

  const Outcome inspected = run({{WEIGHTCAST_BINARY, "inspect", "live:" + folder_}, {}});
  EXPECT_NE(inspected.out.find("its expert map is of epoch 11: 12 slots in 3 layers"), std::string::npos)
      << describe(inspected);
  EXPECT_NE(inspected.out.find("version 2 was committed by update 2, planned for expert map "),
            std::string::npos)
      << describe(inspected);
  EXPECT_NE(inspected.out.find(" of epoch 11"), std::string::npos) << describe(inspected);
  Words verify{WEIGHTCAST_BINARY, "verify", "live:" + folder_, "--source", model_of_step(0)};
  const Words words = layout();
  verify.insert(verify.end(), words.begin(), words.end());
  const Outcome verified = run({verify, {}});
  EXPECT_EQ(verified.exit_code, 0) << describe(verified);
}

TEST_F(MovingExperts, AMapThatTheEngineHasNotIsRefused) {
  offer(1);
  expect_refused(run(job("sync", {"--expert-map", map_file(1)})), 64, "is of epoch 11, but the engines of");
  EXPECT_EQ(difference(0, 0), "");
  const Outcome same = run(job("sync", {"--expert-map", map_file(0)}));
  EXPECT_EQ(same.exit_code, 0) << describe(same);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(0, 1), "");
}

TEST_F(MovingExperts, APlanReadsWhereTheEngineSaysThatTheySit) {
  const auto plan = [&](const std::string& model, const Words& more) {
    Words words{WEIGHTCAST_BINARY, "plan", "--model", model, "--sink", "live:" + folder_};
    words.insert(words.end(), more.begin(), more.end());
    return run({words, {}});
  };
  const Words cut{"--inference", "tp=2,ep=2"};
  const Outcome planned = plan(model_of_step(0), cut);
  EXPECT_EQ(planned.exit_code, 0) << describe(planned);
  EXPECT_NE(planned.out.find(" of epoch 10\n"), std::string::npos) << describe(planned);
  expect_refused(
      plan(model_of_step(0), {"--inference-alloc", "hf:d2"}), 64,
      "hf has the model's own tensors, and no expert slots; let the engines publish without their");
  expect_refused(plan(WEIGHTCAST_TEST_DATA "/models/tiny-qwen3-moe", cut), 65,
                 "is of 8 experts, but layer 0 of the model has 16");
  expect_refused(plan(WEIGHTCAST_TEST_DATA "/models/tiny-qwen3", cut), 64, "has no experts");
}

TEST_F(MovingExperts, AJobThatWasPlannedBeforeAMoveEndsAndLeavesTheEngineAsItIs) {
  shard(1, 0, 0);
  offer(1);
  hold_ = true;
  Process sync(job("sync"));
  ASSERT_TRUE(wait_until_asked());
  move_experts(1, 0);
  hold_ = false;
  expect_refused(sync.wait(), 74,
                 "has moved its experts since the update was planned (its map is of epoch 11 now)");
  EXPECT_EQ(difference(1, 0), "");
  weightcast_reference reference = {};
  check(weightcast_refer(ranks_[0].published->handle(), "model.norm.weight", &reference));  // it serves
  const Outcome again = run(job("sync"));
  EXPECT_EQ(again.exit_code, 0) << describe(again);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(1, 1), "");
}

TEST_F(MovingExperts, AServerPlansAnew) {
  for (const int map : {1, 2}) shard(map, map, 0);
  Process server(job("serve"));
  const std::string file = folder_ + "/server.json";
  while (!std::filesystem::exists(file)) {
    ASSERT_TRUE(server.running()) << describe(server.wait());
    std::this_thread::sleep_for(10ms);
  }
  const CommandLine trigger{{WEIGHTCAST_BINARY, "trigger", folder_}, {}};
  offer(1);
  const Outcome first = run(trigger);
  ASSERT_EQ(first.exit_code, 0) << describe(first);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(0, 1), "");
  // Between two updates.
  move_experts(1, 1);
  offer(2);
  const Outcome second = run(trigger);
  ASSERT_EQ(second.exit_code, 0) << describe(second);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(1, 2), "");
  // Amid one, before the engine has paused.
  hold_ = true;
  offer(3);
  Process asking(trigger);
  ASSERT_TRUE(wait_until_asked());
  move_experts(2, 2);
  hold_ = false;
  const Outcome third = asking.wait();
  EXPECT_EQ(third.exit_code, 0) << describe(third);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(2, 3), "");
  server.send_to_children(SIGUSR1);
  const Outcome outcome = server.wait();
  EXPECT_EQ(outcome.exit_code, 75) << describe(outcome);
  for (const char* said : {"planned anew for epoch 11", "planned anew for epoch 12"}) {
    EXPECT_NE(outcome.err.find(said), std::string::npos) << describe(outcome);
  }
}

// Updates, moves of experts by the engine itself and by jobs, and restarts, in random order: after each of
// them every copy of every expert on every rank is the trainer's.
TEST_F(MovingExperts, WhateverHappensEveryCopyIsTheTrainers) {
  Process server(job("serve"));
  const std::string file = folder_ + "/server.json";
  while (!std::filesystem::exists(file)) {
    ASSERT_TRUE(server.running()) << describe(server.wait());
    std::this_thread::sleep_for(10ms);
  }
  const CommandLine trigger{{WEIGHTCAST_BINARY, "trigger", folder_}, {}};
  constexpr std::uint64_t kSeed = 20261128;
  std::mt19937_64 random(kSeed);
  engine::ExpertSlots map = maps_[0];
  std::int64_t version = 0;
  std::array<int, 4> done{0, 0, 0, 0};
  for (int step = 0; step < 30; ++step) {
    const std::size_t what = step < 4 ? static_cast<std::size_t>(step) : random() % 6 % 4;
    SCOPED_TRACE("step " + std::to_string(step) + ", of kind " + std::to_string(what) + ", version " +
                 std::to_string(version) + ", epoch " + std::to_string(map.epoch));
    ++done[what];
    if (what == 0) {
      offer(++version);
      const Outcome outcome = run(trigger);
      ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
      ASSERT_TRUE(settle());
    } else if (what == 1) {
      const engine::ExpertSlots next = random_map(random, map.epoch + 1);
      rebalance(map, next);
      map = next;
    } else if (what == 3) {
      const engine::ExpertSlots next = random_map(random, map.epoch + 1);
      put_map_file(dir_ / "next.json", next);
      const Outcome outcome = run(rebalance_job("published", dir_ / "next.json"));
      ASSERT_EQ(outcome.exit_code, 0) << describe(outcome);
      ASSERT_TRUE(have(next));
      map = next;
    } else {
      map = maps_[0];
      for (int rank = 0; rank < kRanks; ++rank) start(rank, version, map);
    }
    ASSERT_EQ(wrong_copy(map, version), "");
  }
  EXPECT_GT(*std::ranges::min_element(done), 1);
  EXPECT_NE(wrong_copy(map, version + 1), "");
  server.send_to_children(SIGUSR1);
  EXPECT_EQ(server.wait().exit_code, 75);
}

// Of engines that do not say where their experts sit the record of the last commit says it.
TEST_F(LiveServers, AVersionThatCameByAnotherMapIsSentAgain) {
  const auto sync = [&](const Words& more) {
    Words words{WEIGHTCAST_BINARY, "sync",
                "--source",        "live:" + folder_,
                "--sink",          "live:" + folder_,
                "--model",         model_of_step(0),
                "--trainers",      "2",
                "--inference",     "tp=2,ep=2,replicas=2"};
    words.insert(words.end(), more.begin(), more.end());
    model_.offer(1);
    const Outcome outcome = run(mpirun(2 + LiveModel::kEngines, words));
    EXPECT_EQ(outcome.exit_code, 0) << describe(outcome);
    EXPECT_TRUE(model_.settle());
    return outcome.err;
  };
  sync({});
  EXPECT_EQ(model_.difference(1), "");
  const Words in_turn{"--placement", "round-robin"};
  EXPECT_NE(sync(in_turn).find("have version 1 already, but placed by another expert map; it is sent"),
            std::string::npos);
  EXPECT_NE(model_.difference(1), "");
  EXPECT_NE(sync(in_turn).find("there already"), std::string::npos);
  EXPECT_NE(sync({}).find("placed by another expert map; it is sent"), std::string::npos);
  EXPECT_EQ(model_.difference(1), "");
}

TEST_F(MovingExperts, AJobMovesThemAndTheirMap) {
  offer(1);
  ASSERT_EQ(run(job("sync")).exit_code, 0);
  EXPECT_TRUE(settle());
  weightcast_reference reference = {};
  check(weightcast_refer(ranks_[0].published->handle(), "model.norm.weight", &reference));
  const Outcome moved = run(rebalance_job(map_file(0), map_file(1)));
  ASSERT_EQ(moved.exit_code, 0) << describe(moved);
  EXPECT_NE(moved.out.find("epoch 10 → 11"), std::string::npos) << describe(moved);
  EXPECT_EQ(difference(1, 1), "");
  EXPECT_TRUE(have(maps_[1]));
  void* memory = nullptr;
  EXPECT_EQ(weightcast_resolve(ranks_[0].published->handle(), &reference, &memory, nullptr),
            WEIGHTCAST_STALE);
  // The next update goes there, and the next rebalance begins there.
  offer(2);
  const Outcome update = run(job("sync"));
  ASSERT_EQ(update.exit_code, 0) << describe(update);
  EXPECT_TRUE(settle());
  EXPECT_EQ(difference(1, 2), "");
  const Outcome again = run(rebalance_job("published", map_file(2)));
  ASSERT_EQ(again.exit_code, 0) << describe(again);
  EXPECT_EQ(difference(2, 2), "");
  EXPECT_TRUE(have(maps_[2]));
}

TEST_F(MovingExperts, AJobThatBeginsElsewhereIsRefused) {
  expect_refused(run(rebalance_job(map_file(1), map_file(2))), 64,
                 "--from " + map_file(1) + ": is of epoch 11");
  expect_refused(run(rebalance_job("contiguous", map_file(2))), 64, "--from contiguous: the engines of");
  expect_refused(run(rebalance_job(map_file(1), map_file(0))), 64, "does not follow epoch 11");
  EXPECT_EQ(difference(0, 0), "");
  EXPECT_TRUE(have(maps_[0]));
}

TEST_F(MovingExperts, AJobThatDiesBeforeTheyPauseLeavesThemAsTheyAre) {
  shard(1, 0, 0);
  hold_ = true;
  Process dying(rebalance_job(map_file(0), map_file(1)));
  ASSERT_TRUE(wait_until_asked());
  // Nobody else moves or updates meanwhile.
  expect_refused(run(rebalance_job(map_file(0), map_file(2))), 74, "engine-0.json");
  dying.send_to_children(SIGKILL);
  EXPECT_NE(dying.wait().exit_code, 0);
  hold_ = false;
  EXPECT_EQ(difference(0, 0), "");
  EXPECT_TRUE(have(maps_[0]));
  const Outcome again = run(rebalance_job(map_file(0), map_file(1)));
  ASSERT_EQ(again.exit_code, 0) << describe(again);
  EXPECT_EQ(difference(1, 0), "");
  EXPECT_TRUE(have(maps_[1]));
}

/// Whether a process has stopped, as by SIGSTOP.
bool is_stopped(pid_t process) {
  const std::string stat = get_file("/proc/" + std::to_string(process) + "/stat");
  const std::size_t name = stat.rfind(") ");
  return name != std::string::npos && stat.compare(name + 2, 1, "T") == 0;
}

// A job that dies while it writes, or when all is written, leaves engines without a version, and the next
// update writes by the map that they have then; behind the commit the version is theirs.
TEST_F(MovingExperts, AJobThatDiesLeavesAMapThatTheNextUpdateGoesBy) {
  struct Moment {
    const char* stop_at;  ///< as stop_at_state.cpp reads it: writing, written, and behind the commit
    int rank;
    int map;  ///< that engines have afterwards
  };
  constexpr std::array kMoments{Moment{"5", 1, 0}, Moment{"6", 1, 1}, Moment{"recorded", 0, 1}};
  std::int64_t version = 0;
  for (const Moment& moment : kMoments) {
    SCOPED_TRACE(moment.stop_at);
    for (int rank = 0; rank < kRanks; ++rank) start(rank, version, maps_[0]);
    CommandLine command = rebalance_job("published", map_file(1));
    command.environment["LD_PRELOAD"] = WEIGHTCAST_STOP_AT_STATE;
    command.environment["STOP_RANK"] = std::to_string(moment.rank);
    command.environment["STOP_AT"] = moment.stop_at;
    Process job(command);
    const auto give_up = std::chrono::steady_clock::now() + 60s;
    const auto has_stopped = [&] {
      const std::vector<pid_t> ranks = job.children();
      return ranks.size() == kRanks && is_stopped(ranks.at(static_cast<std::size_t>(moment.rank)));
    };
    while (!has_stopped()) {
      ASSERT_LT(std::chrono::steady_clock::now(), give_up) << "the job does not come there";
      std::this_thread::sleep_for(1ms);
    }
    // The other rank goes as far as it can.
    std::this_thread::sleep_for(300ms);
    job.send_to_children(SIGKILL);
    EXPECT_NE(job.wait().exit_code, 0);
    const auto rested = [&] {
      return std::ranges::all_of(ranks_, [](const Rank& rank) {
        weightcast_reference reference = {};
        const int code = weightcast_refer(rank.published->handle(), "model.norm.weight", &reference);
        return code == WEIGHTCAST_OK || code == WEIGHTCAST_IS_INVALID;
      });
    };
    while (!rested()) {
      ASSERT_LT(std::chrono::steady_clock::now(), give_up) << "the engines do not come to rest";
      std::this_thread::sleep_for(1ms);
    }
    EXPECT_TRUE(have(maps_[static_cast<std::size_t>(moment.map)]));
    if (std::string(moment.stop_at) == "recorded") {
      EXPECT_EQ(difference(moment.map, version), "");
    }
    offer(++version);
    const Outcome update = run(MovingExperts::job("sync"));
    ASSERT_EQ(update.exit_code, 0) << describe(update);
    EXPECT_TRUE(settle());
    EXPECT_EQ(difference(moment.map, version), "");
  }
}

TEST_F(MovingExperts, EnginesThatServeNothingAreNotRebalanced) {
  check(weightcast_invalidate(ranks_[1].published->handle(), "a test"));
  expect_refused(run(rebalance_job("published", map_file(1))), 74, "serves no version");
  EXPECT_TRUE(have(maps_[0]));
}

TEST_F(MovingExperts, MapsThatDifferBetweenRanksAreRefused) {
  check(weightcast_place_experts(ranks_[1].published->handle(), 11, maps_[1].flat().data()));
  offer(1);
  const Outcome outcome = run(job("sync"));
  expect_refused(outcome, 74, "has another expert map (epoch ");
}

TEST_F(MovingExperts, MapsThatAreNoneAndTimesThatAreWrong) {
  weightcast_export* const handle = ranks_[0].published->handle();
  const auto refused = [&](int code, int expected, const std::string& says) {
    EXPECT_EQ(code, expected);
    EXPECT_NE(std::string(weightcast_last_error()).find(says), std::string::npos) << weightcast_last_error();
  };
  std::vector<std::int64_t> slots = maps_[1].flat();
  refused(weightcast_place_experts(handle, 10, slots.data()), WEIGHTCAST_BAD_ARGUMENT, "epoch 10 after 10");
  refused(weightcast_place_experts(handle, -1, slots.data()), WEIGHTCAST_BAD_ARGUMENT, "epoch -1");
  refused(weightcast_place_experts(handle, 11, nullptr), WEIGHTCAST_BAD_ARGUMENT, "is NULL");
  refused(weightcast_place_experts(trainer_->handle(), 11, slots.data()), WEIGHTCAST_BAD_ARGUMENT,
          "has no expert slots");
  slots[5] = kExperts;
  refused(weightcast_place_experts(handle, 11, slots.data()), WEIGHTCAST_BAD_ARGUMENT,
          "slot 5 of layer 0 holds 8, which is none of 8 experts");
  slots = maps_[1].flat();
  std::replace(slots.begin() + kSlots, slots.begin() + 2 * kSlots, 3, 4);
  refused(weightcast_place_experts(handle, 11, slots.data()), WEIGHTCAST_BAD_ARGUMENT,
          "no slot of layer 1 holds expert 3");
}

TEST_F(MovingExperts, AStaleReferenceIsRefused) {
  weightcast_export* const handle = ranks_[0].published->handle();
  const std::string name = "model.layers.0.mlp.experts.w13_weight";
  weightcast_reference reference = {};
  void* memory = nullptr;
  std::int64_t bytes = 0;
  const auto expect_stale = [&] {
    EXPECT_EQ(weightcast_resolve(handle, &reference, &memory, &bytes), WEIGHTCAST_STALE);
    EXPECT_NE(
        std::string(weightcast_last_error()).find(name + ": weights or the places of experts have changed"),
        std::string::npos);
  };
  const auto refer_anew = [&] {
    check(weightcast_refer(handle, name.c_str(), &reference));
    check(weightcast_resolve(handle, &reference, &memory, &bytes));
    EXPECT_EQ(bytes, 6 * 128 * 128 * 2);
    const engine::Tensor there = ranks_[0].published->read(name);
    EXPECT_EQ(there.values.front(), bf16_value(*static_cast<const std::uint16_t*>(memory)));
  };
  refer_anew();
  // An update.
  offer(1);
  EXPECT_EQ(run(job("sync")).exit_code, 0);
  EXPECT_TRUE(settle());
  expect_stale();
  refer_anew();
  // A move of experts.
  move_experts(1, 1);
  expect_stale();
  refer_anew();
  // It has loaded itself anew.
  check(weightcast_serve(handle, 1));
  expect_stale();
  // No version, so no final form.
  refer_anew();
  check(weightcast_invalidate(handle, "a test"));
  EXPECT_EQ(weightcast_resolve(handle, &reference, &memory, &bytes), WEIGHTCAST_IS_INVALID);
  EXPECT_EQ(weightcast_refer(handle, name.c_str(), &reference), WEIGHTCAST_IS_INVALID);
  check(weightcast_serve(handle, 1));
  expect_stale();
  // Of something else.
  EXPECT_EQ(weightcast_refer(handle, "nothing", &reference), WEIGHTCAST_BAD_ARGUMENT);
  EXPECT_EQ(weightcast_refer(trainer_->handle(), name.c_str(), &reference), WEIGHTCAST_BAD_ARGUMENT);
  refer_anew();
  EXPECT_EQ(weightcast_resolve(ranks_[1].published->handle(), &reference, &memory, &bytes),
            WEIGHTCAST_BAD_ARGUMENT);
}

}  // namespace

}  // namespace weightcast::test_support
