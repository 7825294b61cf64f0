// Chunks of HDF5 datasets: whatever filters they went through, they are read right or refused.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <functional>

#include "core/error.hpp"
#include "storage_files.hpp"
#include "storage_hdf5_files.hpp"

namespace weightcast {
namespace {

using namespace testing_files;

constexpr std::array<hsize_t, 2> kExtents{20, 12};
constexpr std::array<hsize_t, 2> kChunk{8, 8};
constexpr std::size_t kChunkBytes = 8 * 8 * 2;

using Filters = std::function<void(hid_t)>;

Hdf5Dataset make(const Hdf5File& file, const char* name, const Filters& filters,
                 std::array<hsize_t, 2> chunk = kChunk, std::array<hsize_t, 2> extents = kExtents) {
  const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate_simple(2, extents.data(), nullptr), kFile));
  const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_CREATE), kFile));
  WEIGHTCAST_HDF5(H5Pset_chunk(creation.get(), 2, chunk.data()), kFile);
  filters(creation.get());
  return Hdf5Dataset(WEIGHTCAST_HDF5(
      H5Dcreate2(file.get(), name, H5T_STD_U16LE, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
      kFile));
}

void none(hid_t /*creation*/) {}
void deflate(hid_t creation) {
  WEIGHTCAST_HDF5(H5Pset_deflate(creation, 4), kFile);
}
void shuffle(hid_t creation) {
  WEIGHTCAST_HDF5(H5Pset_shuffle(creation), kFile);
}
void checksum(hid_t creation) {
  WEIGHTCAST_HDF5(H5Pset_fletcher32(creation), kFile);
}
void scale_offset(hid_t creation) {
  WEIGHTCAST_HDF5(H5Pset_scaleoffset(creation, H5Z_SO_INT, 0), kFile);
}
void n_bit(hid_t creation) {
  WEIGHTCAST_HDF5(H5Pset_nbit(creation), kFile);
}
Filters both(Filters first, Filters second) {
  return [first = std::move(first), second = std::move(second)](hid_t creation) {
    first(creation);
    second(creation);
  };
}
void unfiltered_edges(hid_t creation) {
  deflate(creation);
  WEIGHTCAST_HDF5(H5Pset_chunk_opts(creation, H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS), kFile);
}

class StorageChunks : public ::testing::Test {
 protected:
  Hdf5File create() const {
    const Hdf5Properties access(WEIGHTCAST_HDF5(H5Pcreate(H5P_FILE_ACCESS), kFile));
    WEIGHTCAST_HDF5(H5Pset_libver_bounds(access.get(), H5F_LIBVER_LATEST, H5F_LIBVER_LATEST), kFile);
    return Hdf5File(
        WEIGHTCAST_HDF5(H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), kFile));
  }

  void put_whole(const Filters& filters) const {
    const Hdf5File file = create();
    const Hdf5Dataset dataset = make(file, "w", filters);
    WEIGHTCAST_HDF5(H5Dwrite(dataset.get(), H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, data_.data()),
                    kFile);
  }

  /// What a chunk of `rows` × 8 elements becomes behind filters, as a file of its own has it.
  std::vector<std::byte> packed(const Filters& filters, hsize_t rows) const {
    const Hdf5Properties access(WEIGHTCAST_HDF5(H5Pcreate(H5P_FILE_ACCESS), kFile));
    const Hdf5File file(WEIGHTCAST_HDF5(
        H5Fcreate((dir_ / "packed.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), kFile));
    const Hdf5Dataset dataset = make(file, "w", filters, {rows, 8}, {rows, 8});
    WEIGHTCAST_HDF5(H5Dwrite(dataset.get(), H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, data_.data()),
                    kFile);
    WEIGHTCAST_HDF5(H5Dflush(dataset.get()), kFile);
    const std::array<hsize_t, 2> start{0, 0};
    hsize_t bytes = 0;
    WEIGHTCAST_HDF5(H5Dget_chunk_storage_size(dataset.get(), start.data(), &bytes), kFile);
    std::vector<std::byte> raw(bytes);
    std::uint32_t mask = 0;
    WEIGHTCAST_HDF5(H5Dread_chunk(dataset.get(), H5P_DEFAULT, start.data(), &mask, raw.data()), kFile);
    return raw;
  }

  /// A dataset whose chunk at [8, 0] alone holds `raw`, stored with that mask of filters left out.
  void put_with_odd_chunk(const Filters& filters, const std::vector<std::byte>& raw, std::uint32_t mask,
                          std::array<hsize_t, 2> odd = {8, 0}) const {
    put_whole(filters);
    const Hdf5File file(WEIGHTCAST_HDF5(H5Fopen(path_.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), kFile));
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dopen2(file.get(), "w", H5P_DEFAULT), kFile));
    WEIGHTCAST_HDF5(H5Dwrite_chunk(dataset.get(), H5P_DEFAULT, mask, odd.data(), raw.size(), raw.data()),
                    kFile);
  }

  void expect_refused(std::initializer_list<std::string_view> words) const {
    const Checkpoint checkpoint = read_checkpoint(path_);
    const CheckpointReader reader(checkpoint);
    const StoredTensor& tensor = *checkpoint.find("w");
    const std::string said = message_of<InputError>([&] { read_whole(reader, tensor); });
    EXPECT_TRUE(has(said, {path_, "dataset 'w'", "chunk at [8, 0]", "copy it again"}));
    EXPECT_TRUE(has(said, words));
    // Who does not need the chunk does not see it.
    const Box others{0, 8, 0, 12};
    EXPECT_EQ(read_box(reader, tensor, others), cut(data_, tensor.shape, 2, others));
  }

  void expect_whole() const {
    const Checkpoint checkpoint = read_checkpoint(path_);
    const CheckpointReader reader(checkpoint);
    const StoredTensor& tensor = *checkpoint.find("w");
    EXPECT_EQ(read_whole(reader, tensor), data_);
    for (const Box& box : {Box{7, 2, 7, 2}, Box{0, 20, 3, 1}, Box{8, 8, 0, 8}, Box{19, 1, 11, 1}}) {
      EXPECT_EQ(read_box(reader, tensor, box), cut(data_, tensor.shape, 2, box)) << box.to_string();
    }
  }

  TempDir dir_;
  std::string path_ = dir_ / "a.h5";
  std::vector<std::byte> data_ = random_bytes(20 * 12 * 2, 3);
};

TEST_F(StorageChunks, OfWhichTwoHaveOnePlaceAreRefused) {
  const auto put = [&] {
    const Hdf5Properties access(WEIGHTCAST_HDF5(H5Pcreate(H5P_FILE_ACCESS), kFile));
    const Hdf5File file(
        WEIGHTCAST_HDF5(H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), kFile));
    const Hdf5Dataset dataset = make(file, "w", none);
    WEIGHTCAST_HDF5(H5Dwrite(dataset.get(), H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, data_.data()),
                    kFile);
  };
  // A key of the old index of chunks: bytes, mask, and where the chunk begins, in elements.
  const auto key = [](std::uint64_t row, std::uint64_t col) {
    std::string bytes(8 + 3 * 8, '\0');
    const auto size = static_cast<std::uint32_t>(kChunkBytes);
    std::memcpy(bytes.data(), &size, 4);
    std::memcpy(bytes.data() + 8, &row, 8);
    std::memcpy(bytes.data() + 16, &col, 8);
    return bytes;
  };
  put();
  expect_whole();
  for (const auto& [row, col] : {std::pair{16, 0}, std::pair{0, 0}, std::pair{800, 0}}) {
    SCOPED_TRACE(fmt::format("[{}, {}]", row, col));
    put();
    std::string bytes = get_file(path_);
    const std::size_t at = bytes.find(key(8, 0));
    ASSERT_NE(at, std::string::npos);
    const std::string other = key(static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(col));
    put_file(path_, bytes.replace(at, other.size(), other));
    EXPECT_TRUE(has(message_of<InputError>([&] {
                      const Checkpoint checkpoint = read_checkpoint(path_);
                      read_whole(CheckpointReader(checkpoint), *checkpoint.find("w"));
                    }),
                    {path_, "'w'", "damaged, copy it again"}));
  }
}

// Where a chunk should be and none is the library reads zeros, of a dataset without filters.
TEST_F(StorageChunks, OfManyEachIsLookedUp) {
  constexpr std::uint64_t kRows = 60;
  constexpr std::uint64_t kCols = 40;
  constexpr std::uint64_t kRow = 33;
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(path_);
    const Hdf5Dataset dataset = make(file, "w", none, {1, 1}, {kRows, kCols});
    const std::vector<std::uint16_t> ones(kRows * kCols, 1);
    WEIGHTCAST_HDF5(H5Dwrite(dataset.get(), H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, ones.data()),
                    kFile);
  }
  EXPECT_EQ(read_checkpoint(path_).tensors.size(), 1U);
  // In the old index of chunks a place is given in elements, behind bytes and mask.
  const std::array<std::uint64_t, 4> key{2, kRow, 17, 0};
  const std::string written(reinterpret_cast<const char*>(key.data()), sizeof key);
  std::string bytes = get_file(path_);
  const std::size_t at = bytes.find(written);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 8] = static_cast<char>(kRow + 200);
  put_file(path_, bytes);
  EXPECT_TRUE(
      has(message_of<InputError>([&] { read_checkpoint(path_); }), {path_, "'w'", "chunk", "copy it again"}));
}

TEST_F(StorageChunks, AnyFiltersAreUndone) {
  const std::vector<Filters> all{none,
                                 deflate,
                                 shuffle,
                                 checksum,
                                 n_bit,
                                 scale_offset,
                                 both(shuffle, deflate),
                                 both(scale_offset, deflate),
                                 both(both(shuffle, deflate), checksum),
                                 unfiltered_edges};
  for (std::size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    {
      const Hdf5Lock lock;
      put_whole(all[i]);
    }
    expect_whole();
  }
}

TEST_F(StorageChunks, FlagsThatNoFilterHasAreNobodysBusiness) {
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(path_);
    const Hdf5Dataset dataset = make(file, "w", deflate);
    WEIGHTCAST_HDF5(H5Dwrite(dataset.get(), H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, data_.data()),
                    kFile);
  }
  // Before a filter's name: its number, the name's length, flags and how many values it has, 16 bits each.
  std::string bytes = get_file(path_);
  const std::size_t at = bytes.find("deflate");
  ASSERT_NE(at, std::string::npos);
  bytes[at - 3] = static_cast<char>(bytes[at - 3] | 0x40);
  put_file(path_, bytes);
  expect_whole();
}

TEST_F(StorageChunks, AChunkWhoseFiltersLeaveTooLittleIsRefused) {
  for (const Filters& filters :
       {Filters(deflate), Filters(shuffle), Filters(checksum), both(shuffle, deflate),
        both(both(shuffle, deflate), checksum), Filters(scale_offset), Filters(n_bit)}) {
    for (const hsize_t rows : {1, 7, 9}) {
      SCOPED_TRACE(rows);
      {
        const Hdf5Lock lock;
        put_with_odd_chunk(filters, packed(filters, rows), 0);
      }
      expect_refused({});
    }
  }
}

TEST_F(StorageChunks, AChunkThatIsStoredWithoutFiltersIsMeasured) {
  std::vector<std::byte> raw(data_.begin(), data_.begin() + kChunkBytes);
  for (const Filters& filters : {Filters(deflate), both(shuffle, deflate), Filters(scale_offset)}) {
    for (const std::size_t bytes : {std::size_t{1}, kChunkBytes - 2, kChunkBytes + 2}) {
      {
        const Hdf5Lock lock;
        std::vector<std::byte> odd = raw;
        odd.resize(bytes);
        put_with_odd_chunk(filters, odd, 3);
      }
      expect_refused({fmt::format("{} bytes", bytes), "128"});
    }
    {
      const Hdf5Lock lock;
      put_with_odd_chunk(filters, raw, 3);
    }
    const Checkpoint checkpoint = read_checkpoint(path_);
    const CheckpointReader reader(checkpoint);
    EXPECT_EQ(read_box(reader, *checkpoint.find("w"), {8, 8, 0, 8}), raw);
  }
}

TEST_F(StorageChunks, AChunkOfADatasetWithoutFiltersIsMeasured) {
  for (const bool balanced : {false, true}) {
    {
      const Hdf5Lock lock;
      const Hdf5File file = create_file(path_);
      const Hdf5Dataset dataset = make(file, "w", none);
      for (hsize_t row = 0; row < 24; row += 8) {
        for (hsize_t col = 0; col < 16; col += 8) {
          const std::array<hsize_t, 2> at{row, col};
          const std::size_t odd = row != 8 ? 0 : col == 0 ? 2 : balanced ? std::size_t(-2) : 0;
          WEIGHTCAST_HDF5(
              H5Dwrite_chunk(dataset.get(), H5P_DEFAULT, 0, at.data(), kChunkBytes - odd, data_.data()),
              kFile);
        }
      }
    }
    EXPECT_TRUE(has(message_of<InputError>([&] { read_checkpoint(path_); }),
                    {path_, "dataset 'w'", "not all of its 6 chunks have 128 bytes", "copy it again"}));
  }
}

TEST_F(StorageChunks, AChunkThatWouldUnpackToAnySizeIsRefusedBefore) {
  {
    const Hdf5Lock lock;
    // As large as only something that was packed by a thousand can be.
    std::vector<std::byte> bomb = packed(deflate, 8);
    bomb.resize(30'000);
    put_with_odd_chunk(deflate, bomb, 0);
  }
  expect_refused({"takes 30000 bytes for 128"});
}

TEST_F(StorageChunks, WhatFiltersCannotUndoIsDamaged) {
  {
    const Hdf5Lock lock;
    std::vector<std::byte> cut_short = packed(deflate, 8);
    cut_short.resize(cut_short.size() / 2);
    put_with_odd_chunk(deflate, cut_short, 0);
  }
  expect_refused({"inflate"});
  {
    const Hdf5Lock lock;
    std::vector<std::byte> flipped = packed(checksum, 8);
    flipped[5] ^= std::byte{1};
    put_with_odd_chunk(checksum, flipped, 0);
  }
  expect_refused({"Fletcher32"});
  {
    const Hdf5Lock lock;
    put_with_odd_chunk(scale_offset, std::vector<std::byte>(22, std::byte{16}), 0);
  }
  expect_refused({});
}

TEST_F(StorageChunks, TheSourceOfAVirtualDatasetIsMeasuredToo) {
  {
    const Hdf5Lock lock;
    put_with_odd_chunk(deflate, packed(deflate, 7), 0);
    const Hdf5File file(WEIGHTCAST_HDF5(H5Fopen(path_.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), kFile));
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate_simple(2, kExtents.data(), nullptr), kFile));
    const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_CREATE), kFile));
    WEIGHTCAST_HDF5(H5Pset_virtual(creation.get(), space.get(), ".", "w", space.get()), kFile);
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dcreate2(file.get(), "virtual", H5T_STD_U16LE, space.get(),
                                                         H5P_DEFAULT, creation.get(), H5P_DEFAULT),
                                              kFile));
  }
  EXPECT_TRUE(has(message_of<InputError>([&] { read_checkpoint(path_); }), {path_, "chunk at [8, 0]"}));
}

}  // namespace
}  // namespace weightcast
