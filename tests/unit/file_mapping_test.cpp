// Files that are cut while they are mapped.

#include "sys/file_mapping.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "support/files.hpp"
#include "support/temp_dir.hpp"

namespace weightcast {

namespace {

using test_support::put_file;
using test_support::TempDir;

class FileMappings : public ::testing::Test {
 protected:
  static constexpr std::int64_t kBytes = 64 << 10;

  std::string file(const std::string& name) const {
    put_file(dir_ / name, std::string(kBytes, 'x'));
    return dir_ / name;
  }

  static std::unique_ptr<FileMapping> map(const std::string& path, bool writable = true) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    auto mapping = std::make_unique<FileMapping>(fd, kBytes, writable);
    ::close(fd);
    return mapping;
  }

  static std::int64_t count(const FileMapping& mapping, char value) {
    return std::count(mapping.data(), mapping.data() + mapping.bytes(), static_cast<std::byte>(value));
  }

  TempDir dir_;
};

TEST_F(FileMappings, WhatIsCutOffReadsAsZerosAndSaysSo) {
  const std::string path = file("cut");
  const auto cut = map(path);
  const auto whole = map(file("whole"));
  const auto looked_at = map(path, false);
  EXPECT_EQ(count(*cut, 'x'), kBytes);
  ASSERT_EQ(::truncate(path.c_str(), kBytes / 4), 0);
  // Also where nobody here has met the end.
  EXPECT_TRUE(cut->has_shrunk());
  EXPECT_EQ(count(*cut, 'x'), kBytes / 4);
  EXPECT_EQ(count(*cut, '\0'), kBytes - kBytes / 4);
  EXPECT_TRUE(cut->has_shrunk());
  std::memset(cut->data(), 'y', kBytes);
  EXPECT_EQ(count(*cut, 'y'), kBytes);
  // What is there still goes into the file, and nothing more.
  EXPECT_EQ(test_support::get_file(path), std::string(kBytes / 4, 'y'));
  // One who maps it alone to look at it sees the same.
  EXPECT_EQ(count(*looked_at, 'y'), kBytes / 4);
  EXPECT_TRUE(looked_at->has_shrunk());
  // What has been lost is not there again.
  ASSERT_EQ(::truncate(path.c_str(), kBytes), 0);
  EXPECT_TRUE(cut->has_shrunk());
  EXPECT_EQ(count(*cut, 'y'), kBytes);
  EXPECT_EQ(count(*whole, 'x'), kBytes);
  EXPECT_FALSE(whole->has_shrunk());
}

TEST_F(FileMappings, SeveralThreadsMeetTheEnd) {
  const std::string path = file("cut");
  const auto cut = map(path);
  ASSERT_EQ(::truncate(path.c_str(), 0), 0);
  std::vector<std::jthread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] { std::memset(cut->data() + i * kBytes / 8, i, kBytes / 8); });
  }
  threads.clear();
  EXPECT_TRUE(cut->has_shrunk());
}

TEST_F(FileMappings, OneThatFollowsAnotherIsWhole) {
  const std::string path = file("cut");
  for (int i = 0; i < 3; ++i) {
    const std::string next = file("cut");
    const auto mapping = map(next);
    EXPECT_EQ(count(*mapping, 'x'), kBytes);
    EXPECT_FALSE(mapping->has_shrunk());
    ASSERT_EQ(::truncate(next.c_str(), 0), 0);
    EXPECT_EQ(count(*mapping, '\0'), kBytes);
    EXPECT_TRUE(mapping->has_shrunk());
  }
}

TEST_F(FileMappings, WhatIsNoneOfThemEndsTheProcessAsBefore) {
  const std::string path = file("cut");
  const auto whole = map(file("whole"));
  // By the signal or, where a sanitizer has a handler of its own, by that.
  EXPECT_DEATH(
      {
        const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
        const auto* memory =
            static_cast<const volatile char*>(::mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0));
        if (::ftruncate(fd, 0) == 0) ::_exit(memory[0]);
      },
      "");
}

TEST_F(FileMappings, WhatCannotBeMappedIsAnError) {
  EXPECT_THROW(FileMapping(-1, kBytes, true), std::system_error);
  const std::string path = file("whole");
  EXPECT_EQ(count(*map(path), 'x'), kBytes);
}

}  // namespace

}  // namespace weightcast
