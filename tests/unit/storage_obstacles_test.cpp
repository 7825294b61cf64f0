// Tensors that a file lists and that cannot be read, and data that lies in other files.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstring>
#include <map>

#include "core/error.hpp"
#include "storage_files.hpp"
#include "storage_hdf5_files.hpp"

namespace weightcast {
namespace {

using namespace testing_files;
namespace fs = std::filesystem;

class StorageObstacles : public ::testing::Test {
 protected:
  /// The file with a dataset `plain` that is always fine.
  Hdf5File create(const std::string& name = "a.h5") const {
    fs::create_directories(fs::path(dir_ / name).parent_path());
    Hdf5File file = create_file(dir_ / name);
    put_dataset(file, "plain", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data_.data());
    return file;
  }

  /// Expects dataset `w` to be listed with an obstacle that says so, and everything else to be readable.
  void expect_obstacle(const std::string& why, bool lost,
                       OtherFiles other_files = OtherFiles::kRefused) const {
    const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5", other_files);
    const CheckpointReader reader(checkpoint);
    EXPECT_EQ(read_whole(reader, *checkpoint.find("plain")), data_);
    const StoredTensor* tensor = checkpoint.find("w");
    ASSERT_NE(tensor, nullptr);
    ASSERT_NE(tensor->obstacle, nullptr);
    EXPECT_EQ(tensor->obstacle->lost, lost);
    std::byte byte{};
    EXPECT_TRUE(has(message_of<InputError>([&] {
                      reader.read(*tensor, {0, 1, 0, 1}, {&byte, 1});
                    }),
                    {dir_ / "a.h5", "tensor w", why}));
    // Other ranks know as much.
    const Checkpoint copy = deserialize_checkpoint(serialize(checkpoint));
    EXPECT_EQ(copy.find("w")->obstacle->why, tensor->obstacle->why);
  }

  /// Expects `w` to hold the data.
  void expect_read(OtherFiles other_files) const {
    const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5", other_files);
    const CheckpointReader reader(checkpoint);
    const StoredTensor* tensor = checkpoint.find("w");
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(read_whole(reader, *tensor), data_);
    reader.require_unchanged();
  }

  /// Makes dataset `w` of 100 bytes with those properties.
  static void make(const Hdf5File& file, const Hdf5Properties& creation, std::vector<hsize_t> extents = {100},
                   hid_t type = H5T_STD_U8LE) {
    const Hdf5Space space(
        WEIGHTCAST_HDF5(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), kFile));
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
        H5Dcreate2(file.get(), "w", type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), kFile));
  }
  static Hdf5Properties creation() {
    return Hdf5Properties(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_CREATE), kFile));
  }

  /// A virtual dataset of two halves, each with a source of 50 bytes.
  void make_virtual(const std::array<std::string, 2>& files, const std::array<std::string, 2>& datasets,
                    std::array<hsize_t, 2> lengths = {50, 50}) const {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Properties properties = creation();
    for (std::size_t i = 0; i < 2; ++i) {
      const hsize_t whole = 100;
      const hsize_t start = 50 * i;
      const Hdf5Space to(WEIGHTCAST_HDF5(H5Screate_simple(1, &whole, nullptr), kFile));
      WEIGHTCAST_HDF5(H5Sselect_hyperslab(to.get(), H5S_SELECT_SET, &start, nullptr, &lengths.at(i), nullptr),
                      kFile);
      const Hdf5Space from(WEIGHTCAST_HDF5(H5Screate_simple(1, &lengths.at(i), nullptr), kFile));
      WEIGHTCAST_HDF5(
          H5Pset_virtual(properties.get(), to.get(), files.at(i).c_str(), datasets.at(i).c_str(), from.get()),
          kFile);
    }
    make(file, properties);
  }
  void make_half(const std::string& name, std::size_t half, hsize_t length = 50) const {
    const Hdf5Lock lock;
    fs::create_directories(fs::path(dir_ / name).parent_path());
    const Hdf5File file = create_file(dir_ / name);
    put_dataset(file, "half", H5T_STD_U8LE, H5T_NATIVE_UINT8, {length}, data_.data() + 50 * half);
  }

  void make_external(const std::string& name, std::int64_t offset = 0, hsize_t size = H5F_UNLIMITED,
                     hid_t type = H5T_STD_U8LE, std::vector<hsize_t> extents = {100}) const {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Properties properties = creation();
    WEIGHTCAST_HDF5(H5Pset_external(properties.get(), name.c_str(), offset, size), kFile);
    make(file, properties, std::move(extents), type);
  }
  void put_raw(const std::string& name, std::size_t before, std::size_t bytes = 100) const {
    fs::create_directories(fs::path(dir_ / name).parent_path());
    std::string content;
    content.resize(before + bytes);
    std::memcpy(content.data() + before, data_.data(), bytes);
    put_file(dir_ / name, content);
  }

  TempDir dir_;
  std::vector<std::byte> data_ = random_bytes(100, 3);
};

TEST_F(StorageObstacles, DatasetsThatWereNeverWritten) {
  for (const bool chunked : {false, true}) {
    {
      const Hdf5Lock lock;
      const Hdf5File file = create();
      put_dataset(file, "w", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, nullptr,
                  chunked ? std::vector<hsize_t>{30} : std::vector<hsize_t>{});
    }
    expect_obstacle("created and never written", true);
  }
}

TEST_F(StorageObstacles, DatasetsThatWereWrittenInPart) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    put_dataset(file, "w", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, nullptr, {30});
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dopen2(file.get(), "w", H5P_DEFAULT), kFile));
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Dget_space(dataset.get()), kFile));
    const hsize_t start = 0;
    const hsize_t count = 60;
    WEIGHTCAST_HDF5(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr),
                    kFile);
    const Hdf5Space memory(WEIGHTCAST_HDF5(H5Screate_simple(1, &count, nullptr), kFile));
    WEIGHTCAST_HDF5(
        H5Dwrite(dataset.get(), H5T_NATIVE_UINT8, memory.get(), space.get(), H5P_DEFAULT, data_.data()),
        kFile);
  }
  expect_obstacle("2 of 4 chunks are there", true);
}

TEST_F(StorageObstacles, ATinyFileThatClaimsMuchCostsNothing) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Properties properties = creation();
    const std::array<hsize_t, 2> chunk{1 << 10, 1 << 10};
    WEIGHTCAST_HDF5(H5Pset_chunk(properties.get(), 2, chunk.data()), kFile);
    make(file, properties, {hsize_t{1} << 30, hsize_t{1} << 29}, H5T_STD_U8LE);
  }
  const auto start = std::chrono::steady_clock::now();
  expect_obstacle("never written", true);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(StorageObstacles, FiltersThatAreNotInstalled) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    // Written with a filter that this program registers for a moment.
    const H5Z_class2_t filter{H5Z_CLASS_T_VERS,
                              307,
                              1,
                              1,
                              "squeeze",
                              nullptr,
                              nullptr,
                              [](unsigned, std::size_t, const unsigned*, std::size_t bytes, std::size_t*,
                                 void**) { return bytes; }};
    WEIGHTCAST_HDF5(H5Zregister(&filter), kFile);
    const Hdf5Properties properties = creation();
    const hsize_t chunk = 50;
    WEIGHTCAST_HDF5(H5Pset_chunk(properties.get(), 1, &chunk), kFile);
    WEIGHTCAST_HDF5(H5Pset_filter(properties.get(), 307, H5Z_FLAG_MANDATORY, 0, nullptr), kFile);
    make(file, properties);
    {
      const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dopen2(file.get(), "w", H5P_DEFAULT), kFile));
      WEIGHTCAST_HDF5(H5Dwrite(dataset.get(), H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, data_.data()),
                      kFile);
    }
    WEIGHTCAST_HDF5(H5Zunregister(307), kFile);
  }
  expect_obstacle("packed by the filter squeeze (number 307", true);
}

TEST_F(StorageObstacles, FormsThatAreNotRead) {
  const auto with_type = [&](hid_t type, const std::string& form) {
    {
      const Hdf5Lock lock;
      const Hdf5File file = create();
      make(file, creation(), {2}, type);
    }
    expect_obstacle("has elements of a type that is not read", false);
    EXPECT_EQ(read_checkpoint(dir_ / "a.h5").find("w")->obstacle->form, form);
  };
  const Hdf5Lock lock;
  with_type(H5T_C_S1, "text [2]");
  const Hdf5Type compound(WEIGHTCAST_HDF5(H5Tcreate(H5T_COMPOUND, 8), kFile));
  WEIGHTCAST_HDF5(H5Tinsert(compound.get(), "r", 0, H5T_IEEE_F32LE), kFile);
  WEIGHTCAST_HDF5(H5Tinsert(compound.get(), "i", 4, H5T_IEEE_F32LE), kFile);
  with_type(compound.get(), "compound [2]");
  with_type(H5T_STD_REF_OBJ, "reference [2]");
  with_type(H5T_STD_B16LE, "bits16 [2]");
  const Hdf5Type opaque(WEIGHTCAST_HDF5(H5Tcreate(H5T_OPAQUE, 3), kFile));
  with_type(opaque.get(), "opaque3 [2]");
  const Hdf5Type lists(WEIGHTCAST_HDF5(H5Tvlen_create(H5T_STD_U8LE), kFile));
  with_type(lists.get(), "variable-length [2]");
  const hsize_t two = 2;
  const Hdf5Type array(WEIGHTCAST_HDF5(H5Tarray_create2(H5T_STD_U8LE, 1, &two), kFile));
  with_type(array.get(), "array [2]");
}

TEST_F(StorageObstacles, ShapesThatAreNotRead) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    make(file, creation(), {1, 2, 3, 4, 5, 6});
  }
  expect_obstacle("has 6 dimensions, more than the 5 that are read", false);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate(H5S_NULL), kFile));
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
        H5Dcreate2(file.get(), "w", H5T_STD_U8LE, space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
        kFile));
  }
  expect_obstacle("has no shape", false);
}

TEST_F(StorageObstacles, LinksThatLeadNowhereOrAway) {
  const auto with_link = [&](const std::string& target, const std::string& file_name) {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    WEIGHTCAST_HDF5(file_name.empty()
                        ? H5Lcreate_soft(target.c_str(), file.get(), "w", H5P_DEFAULT, H5P_DEFAULT)
                        : H5Lcreate_external(file_name.c_str(), target.c_str(), file.get(), "w", H5P_DEFAULT,
                                             H5P_DEFAULT),
                    kFile);
  };
  with_link("/nowhere", "");
  expect_obstacle("a link to nothing that this file holds", true);
  with_link("/w", "");
  expect_obstacle("a link to nothing that this file holds", true);
  with_link("/half", "part.h5");
  expect_obstacle("part.h5, which is not there", true);
  make_half("part.h5", 0);
  expect_obstacle("in another file (part.h5)", true);
  with_link("/elsewhere", "part.h5");
  expect_obstacle("no dataset", true, OtherFiles::kBelowFolder);
  with_link("/etc/passwd", "/etc/passwd");
  expect_obstacle("no regular file below the folder", true, OtherFiles::kBelowFolder);
  // The two names of a link end in a byte 0 each.
  for (const std::string& lost : {std::string("part.h5"), std::string("/elsewhere")}) {
    with_link("/elsewhere", "part.h5");
    std::string bytes = get_file(dir_ / "a.h5");
    const std::size_t at = bytes.find(lost);
    ASSERT_NE(at, std::string::npos);
    bytes[at + lost.size()] = 'x';
    put_file(dir_ / "a.h5", bytes);
    EXPECT_TRUE(has(message_of<InputError>([&] { read_checkpoint(dir_ / "a.h5"); }),
                    {dir_ / "a.h5", "linkval buffer", "copy it again"}));
  }
}

TEST_F(StorageObstacles, ALinkThroughAnotherFileIsNotFollowed) {
  // A soft link whose path leads through an external one.
  make_half("part.h5", 0);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    WEIGHTCAST_HDF5(H5Lcreate_external("part.h5", "/", file.get(), "door", H5P_DEFAULT, H5P_DEFAULT), kFile);
    WEIGHTCAST_HDF5(H5Lcreate_soft("/door/half", file.get(), "w", H5P_DEFAULT, H5P_DEFAULT), kFile);
  }
  expect_obstacle("a link to nothing that this file holds", true);
}

TEST_F(StorageObstacles, ExternalRawFiles) {
  make_external("raw.bin", 10);
  expect_obstacle("raw.bin, which is not there", true);
  put_raw("raw.bin", 10);
  expect_obstacle("in another file (raw.bin)", true);
  expect_read(OtherFiles::kBelowFolder);
  // From wherever the program is started, with or without the library's own variables.
  const fs::path before = fs::current_path();
  fs::current_path("/");
  expect_read(OtherFiles::kBelowFolder);
  fs::current_path(before);
  put_raw("raw.bin", 9);
  expect_obstacle("too short", true, OtherFiles::kBelowFolder);
  put_raw("deep/below/raw.bin", 0);
  make_external("deep/below/raw.bin");
  expect_read(OtherFiles::kBelowFolder);
  make_external("deep/below/raw.bin", 0, H5F_UNLIMITED, H5T_STD_U16BE, {50});
  expect_obstacle("big-endian", true, OtherFiles::kBelowFolder);
}

TEST_F(StorageObstacles, ExternalFilesOutsideTheFolder) {
  const TempDir outside;
  put_file(outside / "secret", std::string(100, 's'));
  const std::string relative = fs::relative(outside / "secret", dir_.string()).string();
  fs::create_symlink(outside / "secret", dir_ / "innocent.bin");
  fs::create_directory_symlink(outside.string(), dir_ / "folder");
  for (const std::string& name : {outside / "secret", relative, std::string("innocent.bin"),
                                  std::string("folder/secret"), std::string("."), std::string("/dev/zero")}) {
    make_external(name);
    expect_obstacle("no regular file below the folder", true, OtherFiles::kBelowFolder);
    expect_obstacle("in another file", true);
  }
}

TEST_F(StorageObstacles, SeveralExternalFiles) {
  put_raw("one.bin", 0, 50);
  put_raw("two.bin", 0, 50);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Properties properties = creation();
    WEIGHTCAST_HDF5(H5Pset_external(properties.get(), "one.bin", 0, 50), kFile);
    WEIGHTCAST_HDF5(H5Pset_external(properties.get(), "two.bin", 0, 50), kFile);
    make(file, properties);
  }
  expect_obstacle("several external files", true, OtherFiles::kBelowFolder);
}

TEST_F(StorageObstacles, VirtualDatasets) {
  make_virtual({"one.h5", "parts/two.h5"}, {"half", "half"});
  expect_obstacle("one.h5, which is not there", true);
  make_half("one.h5", 0);
  expect_obstacle("in another file (one.h5)", true);
  expect_obstacle("parts/two.h5, which is not there", true, OtherFiles::kBelowFolder);
  make_half("parts/two.h5", 1, 49);
  expect_obstacle("has not the shape that is taken from it", true, OtherFiles::kBelowFolder);
  make_half("parts/two.h5", 1);
  expect_read(OtherFiles::kBelowFolder);
  const fs::path before = fs::current_path();
  fs::current_path("/");
  expect_read(OtherFiles::kBelowFolder);
  fs::current_path(before);
  make_virtual({"one.h5", "parts/two.h5"}, {"half", "renamed"});
  expect_obstacle("renamed", true, OtherFiles::kBelowFolder);
  make_virtual({"one.h5", "parts/two.h5"}, {"half", "half"}, {50, 49});
  make_half("parts/two.h5", 1, 49);
  expect_obstacle("cover 99 of its 100 elements", true, OtherFiles::kBelowFolder);
  make_virtual({"/etc/hostname", "parts/two.h5"}, {"half", "half"});
  expect_obstacle("no regular file below the folder", true, OtherFiles::kBelowFolder);
}

TEST_F(StorageObstacles, AVirtualDatasetOverAPatternOfNames) {
  make_half("part-0.h5", 0);
  make_half("part-1.h5", 1);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Properties properties = creation();
    const hsize_t whole = 100;
    const hsize_t half = 50;
    const hsize_t start = 0;
    const hsize_t unlimited = H5S_UNLIMITED;
    const Hdf5Space to(WEIGHTCAST_HDF5(H5Screate_simple(1, &whole, &unlimited), kFile));
    WEIGHTCAST_HDF5(H5Sselect_hyperslab(to.get(), H5S_SELECT_SET, &start, &half, &unlimited, &half), kFile);
    const Hdf5Space from(WEIGHTCAST_HDF5(H5Screate_simple(1, &half, nullptr), kFile));
    WEIGHTCAST_HDF5(H5Pset_virtual(properties.get(), to.get(), "part-%b.h5", "half", from.get()), kFile);
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
        H5Dcreate2(file.get(), "w", H5T_STD_U8LE, to.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
        kFile));
  }
  expect_obstacle("pattern of names", true, OtherFiles::kBelowFolder);
}

TEST_F(StorageObstacles, AVirtualDatasetWhoseSourceHasNoData) {
  make_virtual({"one.h5", "two.h5"}, {"half", "half"});
  make_half("one.h5", 0);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir_ / "two.h5");
    put_dataset(file, "half", H5T_STD_U8LE, H5T_NATIVE_UINT8, {50}, nullptr);
  }
  expect_obstacle("never written", true, OtherFiles::kBelowFolder);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir_ / "two.h5");
    put_dataset(file, "half", H5T_STD_I32LE, H5T_NATIVE_INT32, {50}, nullptr);
  }
  expect_obstacle("another HDF5 type", true, OtherFiles::kBelowFolder);
}

TEST_F(StorageObstacles, AVirtualDatasetOfItsOwnFile) {
  make_virtual({".", "."}, {"one", "two"});
  {
    const Hdf5Lock lock;
    const Hdf5File file(WEIGHTCAST_HDF5(H5Fopen((dir_ / "a.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT), kFile));
    put_dataset(file, "one", H5T_STD_U8LE, H5T_NATIVE_UINT8, {50}, data_.data());
    put_dataset(file, "two", H5T_STD_U8LE, H5T_NATIVE_UINT8, {50}, data_.data() + 50);
  }
  expect_read(OtherFiles::kRefused);
  // In a circle.
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Properties properties = creation();
    const hsize_t whole = 100;
    const Hdf5Space all(WEIGHTCAST_HDF5(H5Screate_simple(1, &whole, nullptr), kFile));
    WEIGHTCAST_HDF5(H5Pset_virtual(properties.get(), all.get(), ".", "w", all.get()), kFile);
    make(file, properties);
  }
  expect_obstacle("without end", true);
}

TEST_F(StorageObstacles, ASourceOfAVirtualDatasetThatChangesIsRefused) {
  make_virtual({"one.h5", "two.h5"}, {"half", "half"});
  make_half("one.h5", 0);
  make_half("two.h5", 1);
  const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5", OtherFiles::kBelowFolder);
  make_half("two.h5", 0);
  const CheckpointReader reader(checkpoint);
  EXPECT_TRUE(
      has(message_of<IoError>([&] { read_whole(reader, *checkpoint.find("w")); }), {"two.h5", "changed"}));
}

TEST_F(StorageObstacles, AVirtualDatasetOfOtherNumbersIsNotConverted) {
  // The library would convert the numbers; their bits stand for others.
  const std::vector<std::pair<hid_t, hid_t>> types{{H5T_STD_I16LE, H5T_STD_U16LE},
                                                   {H5T_STD_U16LE, H5T_STD_I16LE},
                                                   {H5T_STD_U16LE, H5T_STD_U16BE},
                                                   {H5T_STD_U16LE, H5T_IEEE_F32LE}};
  for (const auto& [own, source] : types) {
    {
      const Hdf5Lock lock;
      const Hdf5File file = create();
      const hsize_t whole = 50;
      const Hdf5Space all(WEIGHTCAST_HDF5(H5Screate_simple(1, &whole, nullptr), kFile));
      const std::vector<std::byte> values(200);
      put_dataset(file, "source", source, source, {50}, values.data());
      const Hdf5Properties properties = creation();
      WEIGHTCAST_HDF5(H5Pset_virtual(properties.get(), all.get(), ".", "source", all.get()), kFile);
      make(file, properties, {50}, own);
    }
    expect_obstacle("another HDF5 type", true);
  }
}

TEST_F(StorageObstacles, AVirtualDatasetOverExternalRawData) {
  // The library would look for the raw file in the working directory.
  put_raw("raw.bin", 0, 50);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir_ / "one.h5");
    const Hdf5Properties properties = creation();
    WEIGHTCAST_HDF5(H5Pset_external(properties.get(), "raw.bin", 0, H5F_UNLIMITED), kFile);
    const hsize_t half = 50;
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate_simple(1, &half, nullptr), kFile));
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
        H5Dcreate2(file.get(), "half", H5T_STD_U8LE, space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
        kFile));
  }
  make_half("two.h5", 1);
  make_virtual({"one.h5", "two.h5"}, {"half", "half"});
  expect_obstacle("has its own data in another file", true, OtherFiles::kBelowFolder);
}

TEST_F(StorageObstacles, VirtualDatasetsOfVirtualDatasetsAreBounded) {
  constexpr int kLevels = 6;
  constexpr hsize_t kRows = 200;
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    put_dataset(file, "level0", H5T_STD_U8LE, H5T_NATIVE_UINT8, {kRows},
                std::vector<std::byte>(kRows).data());
    const hsize_t one = 1;
    for (int level = 1; level <= kLevels; ++level) {
      const Hdf5Properties properties = creation();
      for (hsize_t row = 0; row < kRows; ++row) {
        const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate_simple(1, &kRows, nullptr), kFile));
        WEIGHTCAST_HDF5(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &row, nullptr, &one, nullptr),
                        kFile);
        WEIGHTCAST_HDF5(H5Pset_virtual(properties.get(), space.get(), ".",
                                       fmt::format("level{}", level - 1).c_str(), space.get()),
                        kFile);
      }
      const Hdf5Space whole(WEIGHTCAST_HDF5(H5Screate_simple(1, &kRows, nullptr), kFile));
      const Hdf5Dataset dataset(
          WEIGHTCAST_HDF5(H5Dcreate2(file.get(), fmt::format("level{}", level).c_str(), H5T_STD_U8LE,
                                     whole.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
                          kFile));
    }
  }
  // Without a memory of what was looked at already this would be 200 to the 6th.
  const auto start = std::chrono::steady_clock::now();
  const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  EXPECT_EQ(checkpoint.find("level1")->obstacle, nullptr);
}

TEST_F(StorageObstacles, ASourceThatIsReplacedWhileItIsReadIsNoticed) {
  make_virtual({"one.h5", "two.h5"}, {"half", "half"});
  make_half("one.h5", 0);
  make_half("two.h5", 1);
  const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5", OtherFiles::kBelowFolder);
  const CheckpointReader reader(checkpoint);
  read_whole(reader, *checkpoint.find("w"));
  make_half("new.h5", 0);
  fs::rename(dir_ / "new.h5", dir_ / "two.h5");
  EXPECT_TRUE(has(message_of<IoError>([&] { reader.require_unchanged(); }), {"two.h5", "changed"}));
}

TEST_F(StorageObstacles, AttributesThatNameNoDtype) {
  const auto with_dtype = [&](hid_t type, const std::string& dtype) {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    make(file, creation(), {100}, type);
    name_dtype(file, "w", dtype);
  };
  with_dtype(H5T_STD_U8LE, "float7");
  expect_obstacle("unknown dtype 'float7'", false);
  with_dtype(H5T_IEEE_F32LE, "bfloat16");
  expect_obstacle("is bfloat16 by its attribute weightcast.dtype but float32 by its HDF5 type", false);
}

TEST_F(StorageObstacles, AChunkThatIsMuchLargerThanItsDataset) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Properties properties = creation();
    const hsize_t chunk = 1 << 28;
    const hsize_t extent = 100;
    const hsize_t most = H5S_UNLIMITED;
    WEIGHTCAST_HDF5(H5Pset_chunk(properties.get(), 1, &chunk), kFile);
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate_simple(1, &extent, &most), kFile));
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(
        H5Dcreate2(file.get(), "w", H5T_STD_U8LE, space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
        kFile));
  }
  expect_obstacle("chunks of 268435456 bytes", true);
}

TEST_F(StorageObstacles, AGroupIsCalledByItsOwnName) {
  for (const char* link : {"a", "latest", "zzz"}) {
    {
      const Hdf5Lock lock;
      const Hdf5File file = create();
      const Hdf5Object group(
          WEIGHTCAST_HDF5(H5Gcreate2(file.get(), "model", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), kFile));
      put_dataset(file, "model/w", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data_.data());
      WEIGHTCAST_HDF5(H5Lcreate_soft("/model", file.get(), link, H5P_DEFAULT, H5P_DEFAULT), kFile);
      WEIGHTCAST_HDF5(H5Lcreate_hard(file.get(), "/", file.get(), "root", H5P_DEFAULT, H5P_DEFAULT), kFile);
    }
    const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5");
    EXPECT_NE(checkpoint.find("model.w"), nullptr) << link;
    EXPECT_EQ(checkpoint.tensors.size(), 2U);
  }
}

TEST_F(StorageObstacles, DatasetsInGroups) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Object outer(
        WEIGHTCAST_HDF5(H5Gcreate2(file.get(), "model", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), kFile));
    const Hdf5Object inner(
        WEIGHTCAST_HDF5(H5Gcreate2(outer.get(), "layers.0", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), kFile));
    put_dataset(file, "model/layers.0/weight", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data_.data());
    put_dataset(file, "model/packed", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data_.data(), {30});
    // A circle: the group is below itself.
    WEIGHTCAST_HDF5(H5Lcreate_hard(file.get(), "model", inner.get(), "again", H5P_DEFAULT, H5P_DEFAULT),
                    kFile);
  }
  const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5");
  const CheckpointReader reader(checkpoint);
  EXPECT_EQ(checkpoint.tensors.size(), 3U);
  for (const char* name : {"model.layers.0.weight", "model.packed"}) {
    ASSERT_NE(checkpoint.find(name), nullptr) << name;
    EXPECT_EQ(read_whole(reader, *checkpoint.find(name)), data_);
  }
}

TEST_F(StorageObstacles, TwoDatasetsOfOneNameAreRefused) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Object group(
        WEIGHTCAST_HDF5(H5Gcreate2(file.get(), "model", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), kFile));
    put_dataset(file, "model/norm", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data_.data());
    put_dataset(file, "model.norm", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data_.data());
  }
  EXPECT_TRUE(has(message_of<InputError>([&] { read_checkpoint(dir_ / "a.h5"); }),
                  {dir_ / "a.h5", "'model/norm'", "both called 'model.norm'"}));
}

TEST_F(StorageObstacles, GroupsThatAreTooDeep) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    std::string path;
    for (int i = 0; i < 100; ++i) {
      path += "/g";
      const Hdf5Object group(WEIGHTCAST_HDF5(
          H5Gcreate2(file.get(), path.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), kFile));
    }
  }
  EXPECT_TRUE(
      has(message_of<InputError>([&] { read_checkpoint(dir_ / "a.h5"); }), {dir_ / "a.h5", "64 levels"}));
}

TEST_F(StorageObstacles, Bfloat16AsOthersWriteIt) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Type opaque(WEIGHTCAST_HDF5(H5Tcreate(H5T_OPAQUE, 2), kFile));
    put_dataset(file, "w", opaque.get(), opaque.get(), {50}, data_.data());
    put_dataset(file, "half", opaque.get(), opaque.get(), {50}, data_.data());
    name_dtype(file, "half", "float16");
    put_dataset(file, "signed", H5T_STD_I16LE, H5T_NATIVE_INT16, {50}, data_.data());
    name_dtype(file, "signed", "bfloat16");
    put_dataset(file, "unsigned", H5T_STD_U16LE, H5T_NATIVE_UINT16, {50}, data_.data());
    name_dtype(file, "unsigned", "bfloat16");
    const Hdf5Type byte(WEIGHTCAST_HDF5(H5Tcreate(H5T_OPAQUE, 1), kFile));
    put_dataset(file, "codes", byte.get(), byte.get(), {100}, data_.data());
    name_dtype(file, "codes", "float8_e4m3fn");
    put_dataset(file, "integers", H5T_STD_U16LE, H5T_NATIVE_UINT16, {50}, data_.data());
  }
  const Checkpoint checkpoint = read_checkpoint(dir_ / "a.h5");
  const CheckpointReader reader(checkpoint);
  EXPECT_EQ(checkpoint.find("w")->dtype, DType::kBF16);
  EXPECT_EQ(checkpoint.find("half")->dtype, DType::kF16);
  EXPECT_EQ(checkpoint.find("signed")->dtype, DType::kBF16);
  EXPECT_EQ(checkpoint.find("unsigned")->dtype, DType::kBF16);
  EXPECT_EQ(checkpoint.find("codes")->dtype, DType::kF8E4M3);
  EXPECT_EQ(checkpoint.find("integers")->dtype, DType::kU16);
  for (const char* name : {"w", "half", "signed", "unsigned", "codes"}) {
    EXPECT_EQ(read_whole(reader, *checkpoint.find(name)), data_) << name;
  }
}

TEST_F(StorageObstacles, OpaqueElementsWithATagAreWhatAnAttributeSays) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create();
    const Hdf5Type opaque(WEIGHTCAST_HDF5(H5Tcreate(H5T_OPAQUE, 2), kFile));
    WEIGHTCAST_HDF5(H5Tset_tag(opaque.get(), "NUMPY:<f2"), kFile);
    put_dataset(file, "w", opaque.get(), opaque.get(), {50}, data_.data());
    put_dataset(file, "named", opaque.get(), opaque.get(), {50}, data_.data());
    name_dtype(file, "named", "float16");
  }
  expect_obstacle("'NUMPY:<f2', which are not read; set the attribute weightcast.dtype", false);
  EXPECT_EQ(read_checkpoint(dir_ / "a.h5").find("named")->dtype, DType::kF16);
}

TEST_F(StorageObstacles, SafetensorsOfOtherTypes) {
  const auto entry = [](const std::string& name, const std::string& type, const std::string& shape, int begin,
                        int end) {
    return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", name, type, shape, begin,
                       end);
  };
  const std::vector<std::string> entries{
      entry("complex", "C64", "[2]", 0, 16), entry("six", "F6_E3M2", "[4]", 16, 19),
      entry("other", "F8_E4M3FNUZ", "[2,1]", 19, 21), entry("deep", "U8", "[1,1,1,1,1,3]", 21, 24),
      entry("plain", "U8", "[3]", 24, 27)};
  put_file(dir_ / "x.safetensors", safetensors_bytes(fmt::format("{{{}}}", fmt::join(entries, ",")), 27));
  const Checkpoint checkpoint = read_checkpoint(dir_ / "x.safetensors");
  const CheckpointReader reader(checkpoint);
  EXPECT_EQ(read_whole(reader, *checkpoint.find("plain")).size(), 3U);
  const std::map<std::string, std::string> forms{{"complex", "C64 [2]"},
                                                 {"six", "F6_E3M2 [4]"},
                                                 {"other", "F8_E4M3FNUZ [2, 1]"},
                                                 {"deep", "U8 [1, 1, 1, 1, 1, 3]"}};
  for (const auto& [name, form] : forms) {
    const StoredTensor* tensor = checkpoint.find(name);
    ASSERT_NE(tensor, nullptr);
    ASSERT_NE(tensor->obstacle, nullptr) << name;
    EXPECT_EQ(tensor->obstacle->form, form);
    EXPECT_FALSE(tensor->obstacle->lost);
    EXPECT_TRUE(
        has(message_of<InputError>([&] { read_whole(reader, *tensor); }), {dir_ / "x.safetensors", name}));
  }
}

TEST_F(StorageObstacles, OtherNamesOfATensor) {
  const std::string header =
      R"("w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"v":{"dtype":"U8","shape":[3],"data_offsets":[2,5]})";
  put_file(dir_ / "x.safetensors",
           safetensors_bytes(
               R"({"__metadata__":{"format":"pt","alias":"w","v":"w","other":"alias"},)" + header + "}", 5));
  const Checkpoint checkpoint = read_checkpoint(dir_ / "x.safetensors");
  const CheckpointReader reader(checkpoint);
  EXPECT_EQ(checkpoint.tensors.size(), 3U);
  ASSERT_NE(checkpoint.find("alias"), nullptr);
  EXPECT_EQ(read_whole(reader, *checkpoint.find("alias")), read_whole(reader, *checkpoint.find("w")));
  // A tensor of its own is not another's alias.
  EXPECT_EQ(checkpoint.find("v")->bytes(), 3);
}

}  // namespace
}  // namespace weightcast
