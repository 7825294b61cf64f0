// An engine's table of where its experts sit, written by the client and read by a job step.

#include "live/expert_table.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "client/export.hpp"
#include "core/error.hpp"
#include "support/files.hpp"
#include "support/temp_dir.hpp"
#include "weightcast/client.h"

namespace weightcast {

namespace {

using Rows = std::vector<std::vector<std::int64_t>>;

const Rows kFirst{{0, 1, 2, 2}, {2, 1, 0, 1}};
const Rows kSecond{{2, 2, 1, 0}, {0, 0, 1, 2}};

std::vector<std::int64_t> flat(const Rows& rows) {
  std::vector<std::int64_t> all;
  for (const auto& row : rows) all.insert(all.end(), row.begin(), row.end());
  return all;
}

class ExpertTableTest : public ::testing::Test {
 protected:
  ExpertTableTest() {
    void* memory = nullptr;
    int segment = 0;
    const std::int64_t elements = 4;
    EXPECT_EQ(weightcast_open(folder_.c_str(), "engine", 0, 1, nullptr, &export_), 0);
    EXPECT_EQ(weightcast_add_segment(export_, 64, &memory, &segment), 0);
    EXPECT_EQ(weightcast_add_entry(export_, "w13", "F32", 1, &elements, nullptr, segment, 16), 0);
    EXPECT_EQ(weightcast_add_experts(export_, 2, 4, 3), 0);
    EXPECT_EQ(weightcast_publish(export_), WEIGHTCAST_BAD_ARGUMENT);  // nobody has said where they sit
    EXPECT_EQ(weightcast_place_experts(export_, 7, flat(kFirst).data()), 0);
    EXPECT_EQ(weightcast_publish(export_), 0) << weightcast_last_error();
    manifest_ = read_manifest(manifest_path(folder_, Role::kEngine, 0));
  }
  ~ExpertTableTest() override { weightcast_close(export_, 1); }

  static std::string refusal(const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was refused";
  }

  /// What reading says when `change` has been made.
  std::string said_of(const std::function<void(weightcast_expert_table&, std::int64_t*)>& change) {
    change(*export_->experts, reinterpret_cast<std::int64_t*>(export_->experts + 1));
    return refusal([&] { static_cast<void>(ExpertTable(manifest_).read()); });
  }

  /// What a job step says of the manifest when a field of it is another one.
  std::string said_of_manifest(const char* field, const nlohmann::json& value) const {
    nlohmann::json manifest = nlohmann::json::parse(test_support::get_file(manifest_.path));
    manifest[field] = value;
    const std::string path = dir_ / "engine-0.json";
    test_support::put_file(path, manifest.dump());
    return refusal([&] { static_cast<void>(read_manifest(path)); });
  }

  void set_state(weightcast_state state, weightcast_state rest) const {
    export_->block->rest = rest;
    export_->block->word = WEIGHTCAST_WORD(state, 5);
  }

  test_support::TempDir dir_;
  std::string folder_ = dir_ / "weights";
  weightcast_export* export_ = nullptr;
  Manifest manifest_;
};

TEST_F(ExpertTableTest, SaysWhereExpertsSitNow) {
  const ExpertTable table(manifest_);
  const ExpertMap first = table.read();
  EXPECT_EQ(first.placement.epoch, 7);
  EXPECT_EQ(first.placement.experts_of_slots, kFirst);
  EXPECT_EQ(first.experts, 3);
  EXPECT_EQ(first.slots, 4);
  EXPECT_EQ(weightcast_place_experts(export_, 8, flat(kSecond).data()), 0);
  const ExpertMap second = table.read();
  EXPECT_EQ(second.placement.epoch, 8);
  EXPECT_EQ(second.placement.experts_of_slots, kSecond);
  EXPECT_NE(key_of(first), key_of(second));
}

TEST_F(ExpertTableTest, IsNeverReadInTwoHalves) {
  const ExpertTable table(manifest_);
  std::atomic<bool> stop = false;
  std::thread engine([&] {
    for (std::int64_t epoch = 8; !stop; ++epoch) {
      weightcast_place_experts(export_, epoch, flat(epoch % 2 == 0 ? kSecond : kFirst).data());
      std::this_thread::yield();
    }
  });
  std::int64_t last = 0;
  int seen = 0;
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  constexpr int kEnough = 200;
  while (seen < kEnough && std::chrono::steady_clock::now() < give_up) {
    const ExpertMap map = table.read();
    const Rows& expected = map.placement.epoch % 2 == 0 ? kSecond : kFirst;
    if (map.placement.experts_of_slots != expected) ADD_FAILURE() << "epoch " << map.placement.epoch;
    seen += map.placement.epoch != last ? 1 : 0;
    last = map.placement.epoch;
  }
  stop = true;
  engine.join();
  EXPECT_EQ(seen, kEnough);
}

TEST_F(ExpertTableTest, WhatIsNoneIsRefused) {
  using Table = weightcast_expert_table;
  EXPECT_NE(said_of([](Table&, std::int64_t* numbers) {
              numbers[1] = 3;
            }).find("engine-0.json: its table of experts has 3 in slot 1 of layer 0"),
            std::string::npos);
  EXPECT_NE(
      said_of([](Table&, std::int64_t* numbers) { numbers[1] = 2; }).find("does not list slot 1 of layer 0"),
      std::string::npos);
  EXPECT_NE(said_of([](Table&, std::int64_t* numbers) {
              numbers[1] = 1;
              numbers[8 + 12] = 2;  // counts come behind the slots of experts
            }).find("says that expert 0 of layer 0 is in 2 slots, and has it in 1"),
            std::string::npos);
  EXPECT_NE(said_of([](Table& table, std::int64_t*) { table.epoch = -5; }).find("has epoch -5"),
            std::string::npos);
  EXPECT_NE(
      said_of([](Table& table, std::int64_t*) { table.sequence = 3; }).find("has been amid a change for 2 s"),
      std::string::npos);
  EXPECT_NE(said_of([](Table& table, std::int64_t*) { table.slots = 5; }).find("is none of this publication"),
            std::string::npos);
  const int file = ::shm_open(manifest_.expert_table.c_str(), O_RDWR, 0);
  ASSERT_EQ(::ftruncate(file, 64), 0);
  ::close(file);
  EXPECT_NE(refusal([&] { ExpertTable table(manifest_); }).find("has 64 bytes and not"), std::string::npos);
}

TEST_F(ExpertTableTest, FieldsOfAManifestThatAreNone) {
  EXPECT_EQ(said_of_manifest("host", "another"), "nothing was refused");
  for (const nlohmann::json& sizes :
       {nlohmann::json({2, 4}), nlohmann::json({0, 4, 3}), nlohmann::json({2, 2, 3}),
        nlohmann::json({2, 4, 0}), nlohmann::json({1 << 20, 1 << 20, 3})}) {
    EXPECT_NE(
        said_of_manifest("expert_slots", sizes).find("'expert_slots' are not the layers, slots and experts"),
        std::string::npos)
        << sizes;
  }
  EXPECT_NE(said_of_manifest("expert_slots", "x").find("'expert_slots'"), std::string::npos);
  EXPECT_NE(said_of_manifest("experts", "/other").find("'experts' names no shared memory of this exporter"),
            std::string::npos);
  EXPECT_NE(said_of_manifest("role", "trainer").find("'experts' is of a trainer"), std::string::npos);
}

TEST_F(ExpertTableTest, NoExpertMovesAndNothingIsReferredToAmidAnUpdate) {
  weightcast_reference reference = {};
  void* memory = nullptr;
  EXPECT_EQ(weightcast_refer(export_, "w13", &reference), WEIGHTCAST_IS_INVALID);
  EXPECT_EQ(weightcast_serve(export_, 1), 0);
  ASSERT_EQ(weightcast_refer(export_, "w13", &reference), 0);
  ASSERT_EQ(weightcast_resolve(export_, &reference, &memory, nullptr), 0);
  EXPECT_EQ(memory, static_cast<std::byte*>(export_->segments.items[0].memory) + 16);
  std::int64_t epoch = 7;
  for (const weightcast_state state :
       {WEIGHTCAST_PAUSED, WEIGHTCAST_WRITING, WEIGHTCAST_WRITTEN, WEIGHTCAST_COMMITTED}) {
    set_state(state, WEIGHTCAST_SERVING);
    EXPECT_EQ(weightcast_place_experts(export_, epoch + 1, flat(kSecond).data()), WEIGHTCAST_REFUSED);
    EXPECT_EQ(weightcast_refer(export_, "w13", &reference), WEIGHTCAST_REFUSED);
    EXPECT_EQ(weightcast_resolve(export_, &reference, &memory, nullptr), WEIGHTCAST_REFUSED);
  }
  // Whoever is asked serves on until it pauses, and what did not take place has changed nothing.
  set_state(WEIGHTCAST_ASKED, WEIGHTCAST_SERVING);
  EXPECT_EQ(weightcast_resolve(export_, &reference, &memory, nullptr), 0);
  EXPECT_EQ(weightcast_place_experts(export_, ++epoch, flat(kSecond).data()), 0);
  EXPECT_EQ(weightcast_resolve(export_, &reference, &memory, nullptr), WEIGHTCAST_STALE);
  set_state(WEIGHTCAST_ASKED, WEIGHTCAST_INVALID);
  EXPECT_EQ(weightcast_refer(export_, "w13", &reference), WEIGHTCAST_IS_INVALID);
  set_state(WEIGHTCAST_SERVING, WEIGHTCAST_SERVING);
  EXPECT_EQ(ExpertTable(manifest_).read().placement.epoch, epoch);
}

TEST_F(ExpertTableTest, SizesThatNoEngineHas) {
  weightcast_export* e = nullptr;
  ASSERT_EQ(weightcast_open((dir_ / "others").c_str(), "engine", 0, 1, nullptr, &e), 0);
  for (const auto& [layers, slots, experts] :
       {std::array<std::int64_t, 3>{0, 4, 3}, {2, 2, 3}, {2, 4, 0}, {2, -1, -1}, {1 << 20, 1 << 20, 3}}) {
    EXPECT_EQ(weightcast_add_experts(e, layers, slots, experts), WEIGHTCAST_BAD_ARGUMENT);
  }
  EXPECT_EQ(weightcast_add_experts(e, 1, 1, 1), 0);
  EXPECT_EQ(weightcast_add_experts(e, 1, 1, 1), WEIGHTCAST_BAD_ARGUMENT);
  weightcast_close(e, 1);
  EXPECT_NE(
      ::access(("/dev/shm" + name_of_memory(::getuid(), manifest_.generation, "experts")).c_str(), F_OK), -1);
}

}  // namespace

}  // namespace weightcast
