// What the client refuses at the call: all that a job step would refuse to read, and waits that are none.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "client/entry_rules.h"
#include "core/dtype.hpp"
#include "core/error.hpp"
#include "live/live_weights.hpp"
#include "live/manifest.hpp"
#include "model/allocation.hpp"
#include "support/files.hpp"
#include "support/temp_dir.hpp"
#include "weightcast/client.h"

namespace weightcast {

namespace {

using Numbers = std::vector<std::int64_t>;
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

class ClientArguments : public ::testing::Test {
 protected:
  static constexpr std::int64_t kBytes = 1 << 16;

  ~ClientArguments() override { weightcast_close(export_, 0); }

  void open(const char* role = "trainer") {
    void* memory = nullptr;
    ASSERT_EQ(weightcast_open(folder_.c_str(), role, 0, 1, nullptr, &export_), 0);
    ASSERT_EQ(weightcast_add_segment(export_, kBytes, &memory, &segment_), 0);
  }

  int add(const char* name, const Numbers& shape, const Numbers& strides = {}, std::int64_t offset = 0,
          const char* dtype = "BF16") {
    return weightcast_add_entry(export_, name, dtype, static_cast<int>(shape.size()), shape.data(),
                                strides.empty() ? nullptr : strides.data(), segment_, offset);
  }

  /// Expects a refusal that says so in one line.
  static void expect_refused(int code, const std::string& says) {
    EXPECT_EQ(code, WEIGHTCAST_BAD_ARGUMENT);
    const std::string line = weightcast_last_error();
    EXPECT_NE(line.find(says), std::string::npos) << line;
    for (const char c : line) EXPECT_GE(static_cast<unsigned char>(c), 0x20U) << line;
  }

  /// Expects that a job step can read what is published, and match it by its names.
  void expect_readable(Role role = Role::kTrainer) {
    ASSERT_EQ(weightcast_publish(export_), 0) << weightcast_last_error();
    const Manifest manifest = read_manifest(manifest_path(folder_, role, 0));
    EXPECT_NO_THROW(PublishedTensors{manifest});
  }

  test_support::TempDir dir_;
  std::string folder_ = dir_ / "weights";
  weightcast_export* export_ = nullptr;
  int segment_ = 0;
};

TEST_F(ClientArguments, ShapesThatNoJobStepReads) {
  open();
  expect_refused(add("six", {1, 1, 1, 1, 1, 1}), "six: has 6 dimensions");
  expect_refused(add("long", {kBytes}), "long: ends behind its segment");
  expect_refused(add("huge", {kMost, 3}), "huge: its shape");
  // Without elements, too.
  expect_refused(add("none", {kMost, kMost, 0}), "none: its shape");
  expect_refused(add("behind", {0}, {}, kBytes + 1), "behind: ends behind its segment");
  expect_refused(add("negative", {-1, -1}), "negative: its shape");
  expect_refused(add("strides", {2, 2}, {-2, 1}), "strides: its shape");
  expect_refused(add("far", {2}, {kMost}), "far: its shape");
  expect_refused(add("before", {2}, {}, -2), "before: its shape, strides or offset");
  expect_refused(add("wide", {kMost / 2, 4}, {0, 0}), "wide: its shape");
  EXPECT_EQ(add("four", {2, 3, 4, 5}), 0);
  EXPECT_EQ(add("scalar", {}, {}, 1024), 0);
  // Of a dimension of one element the stride says nothing.
  EXPECT_EQ(add("one", {1, 2}, {kMost, 1}, 2048), 0);
  EXPECT_EQ(add("empty", {2, 0, 3}), 0);
  expect_readable();
}

TEST_F(ClientArguments, TextsThatAManifestDoesNotTake) {
  expect_refused(weightcast_open(folder_.c_str(), "trainer", 0, 1, "\xff", &export_), "the layout");
  expect_refused(weightcast_open(nullptr, "trainer", 0, 1, nullptr, &export_), "the folder is NULL");
  expect_refused(weightcast_open(folder_.c_str(), nullptr, 0, 1, nullptr, &export_), "the role is NULL");
  EXPECT_EQ(export_, nullptr);
  open();
  for (const char* name : {"\xff", "a\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80",
                           "\xf0\x80\x80\xaf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82"}) {
    expect_refused(add(name, {1}), "is no UTF-8");
  }
  expect_refused(add(nullptr, {1}), "is NULL");
  expect_refused(add("a", {1}, {}, 0, nullptr), "is NULL");
  expect_refused(add("a\x1b[2J", {1}, {}, 0, "BF61"), "dtype 'BF61' is not known");
  std::int64_t offset = 0;
  for (const char* name : {"é€𝄞", "\"\\\x01\x7f", "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(add(name, {1}, {}, offset += 64), 0) << weightcast_last_error();
  }
  expect_refused(weightcast_add_alias(export_, "é€𝄞", "\xff"), "is no UTF-8");
  expect_refused(add("", {1}), "the name of an entry is empty");
  expect_refused(weightcast_add_alias(export_, "é€𝄞", ""), "an alias is empty");
  expect_readable();
}

TEST_F(ClientArguments, WindowsThatNoJobStepUses) {
  void* memory = nullptr;
  int window = 0;
  int number = 0;
  int count = 0;
  open();
  expect_refused(weightcast_add_window(export_, kBytes, kBytes, &memory, &window),
                 "only an engine has a window");
  weightcast_close(std::exchange(export_, nullptr), 0);
  open("engine");
  expect_refused(weightcast_add_window(export_, 0, 1, &memory, &window), "a segment of 0 bytes");
  expect_refused(weightcast_add_window(export_, kBytes, 0, &memory, &window), "0 bytes may be in at once");
  expect_refused(weightcast_add_window(export_, kBytes, 1, nullptr, &window), "the memory is NULL");
  ASSERT_EQ(weightcast_add_window(export_, kBytes, 1, &memory, &window), 0) << weightcast_last_error();
  expect_refused(weightcast_add_window(export_, kBytes, 1, &memory, &window), "there is a window already");
  ASSERT_EQ(add("direct", {2, 2}), 0);
  segment_ = window;
  expect_refused(add("odd", {2, 2}, {}, 64), "odd: in a window a tensor begins with a page");
  expect_refused(add("turned", {2, 2}, {1, 2}), "turned: in a window");
  ASSERT_EQ(add("whole", {2, 2}), 0);
  expect_refused(weightcast_landed(export_, &number, 1, &count), "has not been published yet");
  expect_readable(Role::kEngine);
  const Manifest manifest = read_manifest(manifest_path(folder_, Role::kEngine, 0));
  EXPECT_EQ(manifest.window(), 1);
  EXPECT_EQ(manifest.segments.at(1).limit, 1);
  EXPECT_EQ(manifest.device(), "");
  expect_refused(weightcast_landed(export_, nullptr, 1, &count), "the place for the numbers is NULL");
  expect_refused(weightcast_landed(export_, &number, 1, nullptr), "the place for their count is NULL");
  expect_refused(weightcast_landed(export_, &number, 0, &count), "0 tensors at most");
  // Nobody has paused.
  EXPECT_EQ(weightcast_landed(export_, &number, 1, &count), WEIGHTCAST_REFUSED);
  weightcast_close(std::exchange(export_, nullptr), 0);
  open("engine");
  ASSERT_EQ(add("direct", {2, 2}), 0);
  expect_readable(Role::kEngine);
  expect_refused(weightcast_landed(export_, &number, 1, &count), "has no window");
}

TEST_F(ClientArguments, PlacesThatAreNone) {
  void* memory = nullptr;
  const Numbers one = {1};
  expect_refused(weightcast_open(folder_.c_str(), "trainer", 0, 1, nullptr, nullptr), "is NULL; give it");
  open();
  expect_refused(weightcast_add_segment(export_, 8, nullptr, &segment_), "the place for the memory is NULL");
  expect_refused(weightcast_add_segment(export_, 8, &memory, nullptr), "the place for the segment is NULL");
  expect_refused(weightcast_add_entry(export_, "a", "BF16", 1, nullptr, nullptr, segment_, 0),
                 "the shape is NULL");
  ASSERT_EQ(weightcast_add_entry(export_, "scalar", "BF16", 0, nullptr, nullptr, segment_, 64), 0);
  ASSERT_EQ(add("a", {1}), 0);
  expect_refused(weightcast_set_box(export_, "a", nullptr, one.data()), "the whole tensor's shape is NULL");
  expect_refused(weightcast_set_box(export_, "a", one.data(), nullptr), "the start of the box is NULL");
  expect_refused(weightcast_set_box(export_, nullptr, one.data(), one.data()), "is NULL");
  expect_readable();
  weightcast_close(std::exchange(export_, nullptr), 0);
  open("engine");
  ASSERT_EQ(add("a", {1}), 0);
  expect_readable(Role::kEngine);
  EXPECT_EQ(weightcast_wanted(export_, nullptr), 0);
  expect_refused(weightcast_decline(export_, nullptr), "the reason is NULL");
  expect_refused(weightcast_invalidate(export_, nullptr), "the reason is NULL");
  for (const int code :
       {weightcast_publish(nullptr), weightcast_serve(nullptr, 1), weightcast_offer(nullptr, 1, 0),
        weightcast_settle(nullptr, 0), weightcast_abandon(nullptr, ""), weightcast_wait_in_pieces(nullptr, 1),
        -weightcast_wanted(nullptr, nullptr), weightcast_resume(nullptr)}) {
    expect_refused(code, "the export is NULL");
  }
}

TEST_F(ClientArguments, LayoutsThatNoJobStepReads) {
  for (const char* layout : {"foo",
                             "sglang",
                             "sglang:",
                             "sglang:x2",
                             "sglang:t",
                             "sglang:t0",
                             "sglang:t2t2",
                             "sglang:t2 ",
                             "sglang:t1048577",
                             "vllm:t99999999999999999999",
                             "hf:",
                             "hf:t2",
                             "hfx",
                             "megatron:t2",
                             "SGLANG:t2",
                             " hf",
                             "vllm:(t2)",
                             "vllm:(attn:d2)",
                             "vllm:attn:d2|e2",
                             "vllm:(attn:d2|ffn:e2",
                             "vllm:attn:d2|ffn:e2)",
                             "vllm:(attn:d2c2|ffn:e2)"}) {
    expect_refused(weightcast_open(folder_.c_str(), "engine", 0, 1, layout, &export_), "of an engine; write");
  }
  for (const char* layout :
       {"sglang:t2", "megatron:", "megatron:(t2", "megatron:(attn:t2|ffn)", "megatron:(attn:t2|ffn:c2)",
        "megatron:(attn:t2|)", "megatron:(ffn:t2)", "megatron:attn:e2", "megatron:t2 ",
        "megatron:t2 --stage-layers ", "megatron:t2 --trainer-order dp", "megatron:t2 --tp 2",
        "hf --stage-layers 2", "map:", "map:0123",
        "map:../0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc",
        "map:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0"}) {
    expect_refused(weightcast_open(folder_.c_str(), "trainer", 0, 1, layout, &export_),
                   "of a trainer; write");
  }
  EXPECT_FALSE(std::filesystem::exists(folder_));
  for (const char* layout : {"sglang:d2p1t4e4", "vllm:t1", "vllm:(attn:d8t1|ffn:e8)",
                             "sglang:attn:d2p3t2|ffn:t2e2", "hf", "hf:d2", ""}) {
    EXPECT_NO_THROW(*layout == '\0' ? void() : void(parse_inference_allocation("", layout)));
    ASSERT_EQ(weightcast_open(folder_.c_str(), "engine", 0, 1, layout, &export_), 0) << layout;
    weightcast_close(std::exchange(export_, nullptr), 0);
  }
  for (const char* layout :
       {"megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)", "megatron:d2t2e4", "megatron:attn:t2|ffn:e2",
        "megatron:(attn:t2)", "hf", "map:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}) {
    EXPECT_NO_THROW(*layout == 'm' && layout[1] == 'e' ? void(parse_trainer_allocation("", layout)) : void());
    ASSERT_EQ(weightcast_open(folder_.c_str(), "trainer", 0, 1, layout, &export_), 0) << layout;
    weightcast_close(std::exchange(export_, nullptr), 0);
  }
  const char* const options =
      "megatron:(attn:d2p2t1c1|ffn:d2p2t1e1) --trainer-order tp-pp-dp --trainer-names global --stage-layers "
      "2,1";
  ASSERT_EQ(weightcast_open(folder_.c_str(), "trainer", 0, 1, options, &export_), 0);
}

TEST_F(ClientArguments, FoldersThatTakeNoManifest) {
  const auto open_in = [&](const std::string& folder) {
    return weightcast_open(folder.c_str(), "engine", 0, 1, nullptr, &export_);
  };
  expect_refused(open_in(""), "the folder's name is empty");
  expect_refused(open_in("live:"), "the folder's name is empty");
  const std::string file = dir_ / "file";
  test_support::put_file(file, "");
  EXPECT_EQ(open_in(file), WEIGHTCAST_REFUSED);
  EXPECT_EQ(weightcast_last_error(), file + ": is no folder; name one");
  EXPECT_EQ(open_in(file + "/weights"), WEIGHTCAST_REFUSED);
  EXPECT_NE(std::string(weightcast_last_error()).find(file + "/weights: the folder cannot be made"),
            std::string::npos);
  const std::string closed = dir_ / "closed";
  std::filesystem::create_directory(closed);
  std::filesystem::permissions(closed, std::filesystem::perms::owner_read);
  // Root may write everywhere, or nearly so.
  for (const std::string& folder : {closed, std::string("/proc/self")}) {
    if (::access(folder.c_str(), W_OK) == 0) continue;
    EXPECT_EQ(open_in(folder), WEIGHTCAST_REFUSED);
    EXPECT_NE(std::string(weightcast_last_error()).find("this user cannot write into the folder"),
              std::string::npos)
        << weightcast_last_error();
  }
  ASSERT_EQ(open_in("live:" + folder_), 0);
  EXPECT_TRUE(std::filesystem::exists(folder_));
}

TEST_F(ClientArguments, NamesThatAreTakenAlready) {
  open();
  ASSERT_EQ(add("a", {1}), 0);
  ASSERT_EQ(add("b", {1}, {}, 64), 0);
  ASSERT_EQ(weightcast_add_alias(export_, "a", "c"), 0);
  expect_refused(add("b", {1}, {}, 128), "b: is there twice");
  expect_refused(add("c", {1}, {}, 128), "c: is there twice");
  for (const char* alias : {"a", "b", "c"})
    expect_refused(weightcast_add_alias(export_, "b", alias), "is there twice");
  expect_refused(weightcast_add_alias(export_, "d", "e"), "no such entry");
  EXPECT_EQ(weightcast_add_alias(export_, "c", "d"), 0);
  expect_readable();
}

TEST_F(ClientArguments, EntriesThatLieInOneAnother) {
  open();
  ASSERT_EQ(add("a", {8}), 0);
  ASSERT_EQ(add("b", {8}, {}, 14), 0);
  expect_refused(weightcast_publish(export_), "b: overlaps a");
}

TEST_F(ClientArguments, BoxesThatAreNone) {
  open();
  ASSERT_EQ(add("a", {2, 3}), 0);
  const auto box = [&](const Numbers& whole, const Numbers& start) {
    return weightcast_set_box(export_, "a", whole.data(), start.data());
  };
  expect_refused(box({2, 3}, {1, 0}), "a: its box goes beyond");
  expect_refused(box({2, 3}, {0, -1}), "a: its box goes beyond");
  expect_refused(box({1, 3}, {0, 0}), "a: its box goes beyond");
  expect_refused(box({kMost, 3}, {kMost, 0}), "a: its box goes beyond");
  expect_refused(box({kMost, 3}, {0, 0}), "or that is too large");
  EXPECT_EQ(box({kMost / 3, 3}, {kMost / 3 - 2, 0}), 0);
  expect_readable();
}

TEST_F(ClientArguments, WaitsAndVersionsThatAreNone) {
  open();
  ASSERT_EQ(add("a", {1}), 0);
  expect_readable();
  for (const double seconds : {std::nan(""), -1.0, static_cast<double>(INFINITY), 1e300}) {
    expect_refused(weightcast_offer(export_, 1, seconds), "give a number from 0 to");
    expect_refused(weightcast_settle(export_, seconds), "give a number from 0 to");
    expect_refused(weightcast_close(export_, seconds), "give a number from 0 to");
  }
  expect_refused(weightcast_offer(export_, -1, 0), "version -1; versions count from 0");
  // Nothing was offered, and nothing closed.
  expect_refused(weightcast_settle(export_, 0), "nothing is offered");
}

TEST_F(ClientArguments, WaitsAndVersionsOfAnEngineThatAreNone) {
  open("engine");
  ASSERT_EQ(add("a", {1}), 0);
  expect_refused(weightcast_serve(export_, -1), "version -1; versions count from 0");
  expect_readable(Role::kEngine);
  std::int64_t version = 0;
  for (const double seconds : {std::nan(""), -1.0, static_cast<double>(INFINITY), 1e300}) {
    expect_refused(weightcast_pause(export_, seconds, &version), "give a number from 0 to");
    expect_refused(weightcast_pause_for(export_, 3, seconds, &version), "give a number from 0 to");
  }
}

TEST_F(ClientArguments, EveryDtypeIsReadWithItsSize) {
  open();
  int known = 0;
  for (const DTypeInfo& info : dtype_table()) {
    const std::string dtype(info.safetensors);
    const std::int64_t elements = kBytes / info.bytes;
    if (add(dtype.c_str(), {elements}, {}, 0, dtype.c_str()) != 0) continue;
    ++known;
    expect_refused(add("larger", {elements + 1}, {}, 0, dtype.c_str()), "ends behind its segment");
  }
  EXPECT_EQ(known, 16);
}

}  // namespace

}  // namespace weightcast
