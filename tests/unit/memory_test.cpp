#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <string>

#include "memory/available.hpp"
#include "support/files.hpp"
#include "support/temp_dir.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

/// A file tree in which the kernel calls 100 GiB available.
class AvailableMemory : public ::testing::Test {
 protected:
  AvailableMemory() {
    put("proc/meminfo", "MemTotal:       209715200 kB\nMemFree: 1 kB\nMemAvailable:   104857600 kB\n");
  }

  void put(const std::string& name, const std::string& text) const {
    test_support::put_file(dir_ / name, text);
  }
  void put_version_2(const std::string& group, const std::string& limit, std::int64_t used,
                     std::int64_t cache) const {
    const std::string folder = "sys/fs/cgroup" + group;
    put(folder + "/memory.max", limit + "\n");
    put(folder + "/memory.current", std::to_string(used) + "\n");
    put(folder + "/memory.stat",
        "anon 1\ninactive_anon 7\ninactive_file " + std::to_string(cache) + "\nactive_file 3\n");
  }
  void put_version_1(const std::string& group, std::int64_t limit, std::int64_t used,
                     std::int64_t cache) const {
    const std::string folder = "sys/fs/cgroup/memory" + group;
    put(folder + "/memory.limit_in_bytes", std::to_string(limit) + "\n");
    put(folder + "/memory.usage_in_bytes", std::to_string(used) + "\n");
    put(folder + "/memory.stat", "inactive_file 5\ntotal_inactive_file " + std::to_string(cache) + "\n");
  }
  std::int64_t available() const { return available_node_bytes(dir_.string()); }

  test_support::TempDir dir_;
};

TEST_F(AvailableMemory, WithoutControlGroupsIsTheKernels) {
  EXPECT_EQ(available(), 100 * kGiB);
  put("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(available(), 100 * kGiB);
}

TEST_F(AvailableMemory, AGroupsLimitLessWhatItUsesWithoutDroppableCache) {
  put("proc/self/cgroup", "0::/job\n");
  put_version_2("/job", std::to_string(20 * kGiB), 8 * kGiB, 3 * kGiB);
  EXPECT_EQ(available(), 15 * kGiB);
  put_version_2("/job", "max", 8 * kGiB, 3 * kGiB);
  EXPECT_EQ(available(), 100 * kGiB);
}

TEST_F(AvailableMemory, EveryGroupAroundBindsToo) {
  // As Slurm nests them: the limit is the job's or the step's, the process is in the task's group.
  const std::string job = "/system.slice/slurmstepd.scope/job_7";
  put("proc/self/cgroup", "0::" + job + "/step_0/user/task_1\n");
  put_version_2(job + "/step_0/user/task_1", "max", 1 * kGiB, 0);
  EXPECT_EQ(available(), 100 * kGiB);
  put_version_2(job, std::to_string(30 * kGiB), 10 * kGiB, 0);
  EXPECT_EQ(available(), 20 * kGiB);
  put_version_2(job + "/step_0", std::to_string(18 * kGiB), 6 * kGiB, 0);
  EXPECT_EQ(available(), 12 * kGiB);
  put_version_2("", std::to_string(9 * kGiB), 2 * kGiB, 1 * kGiB);
  EXPECT_EQ(available(), 8 * kGiB);
  put_version_2("/system.slice/other", std::to_string(kGiB), 0, 0);
  EXPECT_EQ(available(), 8 * kGiB);
}

TEST_F(AvailableMemory, VersionOne) {
  put("proc/self/cgroup",
      "11:cpuset:/\n9:cpu,memory:/slurm/job_7/step_0\n1:name=old,swap_memory:/no\n0::/unified\n");
  put_version_1("/slurm/job_7/step_0", std::int64_t{9223372036854771712}, 2 * kGiB, 1 * kGiB);
  EXPECT_EQ(available(), 100 * kGiB);
  put_version_1("/slurm/job_7", 40 * kGiB, 12 * kGiB, 2 * kGiB);
  EXPECT_EQ(available(), 30 * kGiB);
  // Another controller's path says nothing about memory.
  put_version_1("/no", kGiB, 0, 0);
  EXPECT_EQ(available(), 30 * kGiB);
}

TEST_F(AvailableMemory, AContainerSeesItsGroupAsTheRoot) {
  put("proc/self/cgroup", "0::/docker/of-the-host\n");
  put_version_2("", std::to_string(4 * kGiB), 1 * kGiB, 0);
  EXPECT_EQ(available(), 3 * kGiB);
}

TEST_F(AvailableMemory, AGroupBeyondItsLimitHasNone) {
  put("proc/self/cgroup", "0::/full\n");
  put_version_2("/full", std::to_string(2 * kGiB), 3 * kGiB, 0);
  EXPECT_LE(available(), 0);
}

TEST(AvailableToTheProcess, IsWhatItsAddressSpaceLimitLeaves) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  rlimit limit = before;
  // Far more than even a sanitizer maps.
  limit.rlim_cur = rlim_t{1} << 46;
  if (setrlimit(RLIMIT_AS, &limit) != 0) GTEST_SKIP() << "the hard limit is lower";
  const std::int64_t available = available_process_bytes();
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_LT(available, std::int64_t{1} << 46);
  EXPECT_GT(available, std::int64_t{1} << 45);
}

}  // namespace

}  // namespace weightcast
