#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "control_world.hpp"
#include "launch/job/update_job.hpp"
#include "shared_dir.hpp"
#include "source/memory_source.hpp"
#include "storage/output_lock.hpp"

namespace weightcast {

namespace {

using mpi_test::SharedDir;
using mpi_test::under_control;

constexpr int kRanks = 3;
constexpr const char* kModel = WEIGHTCAST_TEST_DATA "/models/tiny-qwen3-moe";

Options options_of(std::vector<const char*> words) {
  words.insert(words.begin(), {"weightcast", "sync", "--progress", "never", "--bucket-size", "64KiB",
                               "--inference", "tp=2", "--model", kModel});
  std::vector<std::string> notes;
  return parse_options(static_cast<int>(words.size()), words.data(), false, notes).value();
}

/// What a trainer would say of a source that is not there.
class LostSource final : public HostSource {
 public:
  void find_largest(std::int64_t /*trainer*/, std::span<float> /*largest*/,
                    const std::function<void()>& /*poll*/) override {}
  void finish_bucket(std::uint32_t /*bucket*/, std::byte* /*staging*/,
                     std::span<std::uint64_t> /*digests*/) override {
    throw IoError("lost amid the update");
  }
};

TEST(Job, TheNextUpdateFollowsOneThatFailed) {
  under_control(kRanks, [&](Control& control) {
    const SharedDir dir(control);
    const std::string sink = "hdf5:" + dir / "shards";
    const Options options = options_of({"--sink", sink.c_str()});
    UpdateJob job(control, options);
    job.open({}, [] {});
    job.print_head("");
    const auto update = [&](std::int64_t version, auto make) {
      std::unique_ptr<Source> source;
      job.update({version, "memory", true, [&] {
                    control.agreement.together([&] {
                      if (job.trainer()) source = make(version);
                    });
                    return source.get();
                  }});
    };
    const auto whole = [&](std::int64_t version) -> std::unique_ptr<Source> {
      return std::make_unique<MemorySource>(job.session().plan(), job.model().family->catalog(),
                                            *job.trainer(), version);
    };
    const auto lost = [](std::int64_t) { return std::make_unique<LostSource>(); };
    const auto absent = [](std::int64_t) -> std::unique_ptr<Source> { throw InputError("no such weights"); };

    // The sink refuses what is no folder.
    control.agreement.together([&] {
      if (control.rank() == 0) std::ofstream(dir / "shards") << "a file";
    });
    EXPECT_THROW(update(1, whole), AgreedFailure);
    control.agreement.together([&] {
      if (control.rank() == 0) std::filesystem::remove(dir / "shards");
    });
    EXPECT_THROW(update(2, absent), AgreedFailure);
    update(3, whole);
    EXPECT_EQ(control.deadline.in_place(), "version 3 is in place");
    EXPECT_TRUE(std::filesystem::exists(folder_lock(dir / "shards"))) << "not claimed";
    EXPECT_THROW(update(4, lost), AgreedFailure);
    EXPECT_EQ(control.deadline.in_place(), "");
    update(5, whole);

    const std::vector<UpdateRecord>& updates = job.report().updates;
    ASSERT_EQ(updates.size(), 2);
    EXPECT_EQ(updates[0].weight_version, 3);
    EXPECT_EQ(updates[1].weight_version, 5);
    EXPECT_TRUE(std::filesystem::exists(dir / "shards/rank-1.h5"));
  });
}

}  // namespace

}  // namespace weightcast
