// Sources that change between the reading of their headers and the end of an update.

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <functional>

#include "core/error.hpp"
#include "storage/local_files.hpp"
#include "storage_files.hpp"
#include "sys/host.hpp"

namespace weightcast {
namespace {

using namespace testing_files;
namespace fs = std::filesystem;

/// Two tensors of 100 bytes each, in the order named.
std::string two_tensors(const std::string& first, const std::string& second) {
  return safetensors_bytes(fmt::format(R"({{"{}":{{"dtype":"U8","shape":[100],"data_offsets":[0,100]}},)"
                                       R"("{}":{{"dtype":"U8","shape":[100],"data_offsets":[100,200]}}}})",
                                       first, second),
                           200);
}

class StorageChanges : public ::testing::Test {
 protected:
  void SetUp() override { put_file(path_, two_tensors("a", "b")); }

  /// Puts another file of the same size in the place of the first.
  void replace(const std::string& bytes) const {
    put_file(dir_ / "new", bytes);
    fs::rename(dir_ / "new", path_);
  }
  /// Writes to the file as it lies there; the time is one later, as it is a tick of the clock later.
  void overwrite(const std::string& bytes) const {
    const auto before = fs::last_write_time(path_);
    put_file(path_, bytes);
    fs::last_write_time(path_, before + std::chrono::milliseconds(10));
  }
  void expect_refused(const std::function<void()>& action) const {
    EXPECT_TRUE(
        has(message_of<IoError>(action), {path_, "changed after its header was read", "start again"}));
  }

  TempDir dir_;
  std::string path_ = dir_ / "model.safetensors";
};

TEST_F(StorageChanges, AFileThatIsReplacedBeforeItIsReadIsRefused) {
  const Checkpoint checkpoint = read_checkpoint(dir_.string());
  replace(two_tensors("b", "a"));
  const CheckpointReader reader(checkpoint);
  expect_refused([&] { read_whole(reader, checkpoint.tensors.front()); });
}

TEST_F(StorageChanges, AFileThatIsWrittenToBeforeItIsReadIsRefused) {
  const Checkpoint checkpoint = read_checkpoint(path_);
  overwrite(two_tensors("b", "a"));
  const CheckpointReader reader(checkpoint);
  expect_refused([&] { read_whole(reader, checkpoint.tensors.front()); });
}

TEST_F(StorageChanges, AFileThatIsWrittenToWhileItIsReadIsRefusedAtTheEnd) {
  const Checkpoint checkpoint = read_checkpoint(path_);
  const CheckpointReader reader(checkpoint);
  read_whole(reader, checkpoint.tensors.front());
  reader.require_unchanged();
  overwrite(two_tensors("b", "a"));
  expect_refused([&] { reader.require_unchanged(); });
}

TEST_F(StorageChanges, AFileThatIsReplacedWhileItIsReadIsRefusedAtTheEnd) {
  const Checkpoint checkpoint = read_checkpoint(path_);
  const CheckpointReader reader(checkpoint);
  const auto before = read_whole(reader, *checkpoint.find("b"));
  replace(two_tensors("b", "a"));
  EXPECT_EQ(read_whole(reader, *checkpoint.find("b")), before);
  expect_refused([&] { reader.require_unchanged(); });
}

TEST_F(StorageChanges, AFileThatLosesItsNameWhileItIsReadIsRead) {
  const Checkpoint checkpoint = read_checkpoint(path_);
  const CheckpointReader reader(checkpoint);
  const auto before = read_whole(reader, *checkpoint.find("b"));
  fs::remove(path_);
  EXPECT_EQ(read_whole(reader, *checkpoint.find("b")), before);
  reader.require_unchanged();
}

TEST_F(StorageChanges, AFileThatNobodyReadMayChange) {
  const Checkpoint checkpoint = read_checkpoint(path_);
  const CheckpointReader reader(checkpoint);
  overwrite(two_tensors("b", "a"));
  reader.require_unchanged();
}

TEST_F(StorageChanges, AnHdf5FileIsAsGood) {
  const std::string path = dir_ / "w.h5";
  const auto write = [&] {
    const std::vector<DatasetSpec> datasets{{"w", DType::kF32, Shape{10, 10}}};
    const auto writer = create_hdf5(path, {}, datasets);
    write_all(*writer, datasets);
    writer->commit();
  };
  write();
  const Checkpoint checkpoint = read_checkpoint(path);
  const CheckpointReader early(checkpoint);
  read_whole(early, checkpoint.tensors.front());
  write();
  EXPECT_TRUE(has(message_of<IoError>([&] { early.require_unchanged(); }), {path, "changed"}));
  const CheckpointReader late(checkpoint);
  EXPECT_TRUE(
      has(message_of<IoError>([&] { read_whole(late, checkpoint.tensors.front()); }), {path, "changed"}));
}

TEST_F(StorageChanges, AFileThatSomebodyMayWriteToIsRefused) {
  const auto refused = [&](const std::function<void()>& action) {
    EXPECT_TRUE(has(message_of<IoError>(action), {path_, "is being written", "wait until it is complete"}));
  };
  const auto read = [&] { read_checkpoint(dir_.string()); };
  const int writer = ::open(path_.c_str(), O_RDWR);
  ASSERT_GE(writer, 0);
  if (!InputFile(path_).has_writer()) GTEST_SKIP() << "no leases here";
  refused(read);
  void* const map = ::mmap(nullptr, 100, PROT_READ | PROT_WRITE, MAP_SHARED, writer, 0);
  ASSERT_NE(map, MAP_FAILED);
  ::close(writer);
  refused(read);
  ::munmap(map, 100);
  const Checkpoint checkpoint = read_checkpoint(dir_.string());
  const CheckpointReader reader(checkpoint);
  read_whole(reader, checkpoint.tensors.front());
  reader.require_unchanged();
  {
    const std::ofstream other(path_, std::ios::app);
    refused([&] { reader.require_unchanged(); });
    refused([&] { read_whole(CheckpointReader(checkpoint), checkpoint.tensors.front()); });
  }
  reader.require_unchanged();
  // Readers do not matter.
  const std::ifstream reading(path_);
  read();
}

TEST_F(StorageChanges, AWriterWhoHasBeenStillForLongMayYetWrite) {
  const auto still = [](const std::string& path) {
    using namespace std::chrono_literals;
    fs::last_write_time(path, fs::file_time_type::clock::now() - 5min);
  };
  const int writer = ::open(path_.c_str(), O_RDWR);
  ASSERT_GE(writer, 0);
  if (!InputFile(path_).has_writer()) GTEST_SKIP() << "no leases here";
  still(path_);
  // Many programs keep open what they have long finished.
  if (InputFile(path_).keeps_time_of_mappings()) {
    EXPECT_NO_THROW(read_checkpoint(dir_.string()));
  }
  // A download that stalls: the rest is reserved, and zeros until it comes.
  const std::string bytes = get_file(path_);
  constexpr int kMuch = 1 << 20;
  const std::string whole = safetensors_bytes(
      fmt::format(R"({{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}})", kMuch), kMuch);
  const std::size_t begun = whole.size() - kMuch;
  ASSERT_EQ(::ftruncate(writer, 0), 0);
  ASSERT_EQ(::posix_fallocate(writer, 0, static_cast<off_t>(whole.size())), 0);
  ASSERT_EQ(::pwrite(writer, whole.data(), begun, 0), static_cast<ssize_t>(begun));
  still(path_);
  if (InputFile(path_).has_holes()) {
    EXPECT_TRUE(
        has(message_of<IoError>([&] { read_checkpoint(dir_.string()); }), {path_, "is being written"}));
  }
  ::close(writer);
  // In memory a mapping's writes give no new time.
  const fs::path memory = fmt::format("/dev/shm/weightcast-changes-{}", ::getpid());
  fs::create_directory(memory);
  const std::string in_memory = memory / "model.safetensors";
  put_file(in_memory, bytes);
  still(in_memory);
  EXPECT_NO_THROW(read_checkpoint(in_memory));
  {
    const std::ofstream mapped(in_memory, std::ios::app);
    if (InputFile(in_memory).has_writer()) {
      EXPECT_TRUE(
          has(message_of<IoError>([&] { read_checkpoint(in_memory); }), {in_memory, "is being written"}));
    }
  }
  fs::remove_all(memory);
}

TEST_F(StorageChanges, FilesOfAnotherHostAreKnownByTheirHeaders) {
  Checkpoint checkpoint = read_checkpoint(path_);
  EXPECT_EQ(checkpoint.host, this_host());
  // Another host with a file of its own: another inode and time.
  replace(two_tensors("a", "b"));
  checkpoint.host = "elsewhere";
  adopt_local_files(checkpoint);
  const CheckpointReader reader(checkpoint);
  EXPECT_NO_THROW(read_whole(reader, checkpoint.tensors.front()));
  // The same size, another order.
  replace(two_tensors("b", "a"));
  EXPECT_TRUE(
      has(message_of<IoError>([&] { adopt_local_files(checkpoint); }), {path_, "another file", "elsewhere"}));
  replace(two_tensors("a", "bb"));
  EXPECT_TRUE(has(message_of<IoError>([&] { adopt_local_files(checkpoint); }), {path_, "another file"}));
  // Where the headers were read nothing is adopted.
  checkpoint.host = this_host();
  adopt_local_files(checkpoint);
  expect_refused([&] { read_whole(CheckpointReader(checkpoint), checkpoint.tensors.front()); });
}

TEST_F(StorageChanges, WhatTellsFilesApartTravelsWithTheHeaders) {
  const Checkpoint checkpoint = read_checkpoint(path_);
  const Checkpoint copy = deserialize_checkpoint(serialize(checkpoint));
  EXPECT_EQ(copy.files, checkpoint.files);
  EXPECT_EQ(copy.host, checkpoint.host);
  EXPECT_NE(copy.files.front().identity.inode, 0U);
  EXPECT_NE(copy.files.front().header_hash, 0U);
}

}  // namespace
}  // namespace weightcast
