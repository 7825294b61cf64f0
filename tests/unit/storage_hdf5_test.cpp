// HDF5 files as other programs see them, and HDF5 files that other programs made.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <thread>

#include "core/error.hpp"
#include "storage/attributes.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage_files.hpp"
#include "storage_hdf5_files.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {
namespace {

using namespace testing_files;

TEST(StorageHdf5, RoundTripByPosition) {
  const TempDir dir;
  const auto datasets = varied_datasets();
  auto writer = create_hdf5(dir / "new/folder/a.h5", {{"weight_version", std::int64_t{7}}}, datasets);
  write_all(*writer, datasets);
  writer->commit();
  EXPECT_EQ(names_in(dir / "new/folder"), std::vector<std::string>{"a.h5"});
  const Checkpoint checkpoint = read_checkpoint(dir / "new/folder");
  EXPECT_EQ(checkpoint.weight_version, 7);
  for (const StoredTensor& tensor : checkpoint.tensors) {
    EXPECT_NE(tensor.offset, StoredTensor::kThroughLibrary) << tensor.name;
  }
  expect_holds(checkpoint, datasets);
}

TEST(StorageHdf5, WhatNobodyWritesIsZero) {
  const TempDir dir;
  create_hdf5(dir / "a.h5", {}, {{"w", DType::kF32, Shape{100, 100}}})->commit();
  const Checkpoint checkpoint = read_checkpoint(dir / "a.h5");
  const CheckpointReader reader(checkpoint);
  EXPECT_EQ(read_whole(reader, *checkpoint.find("w")), std::vector<std::byte>(40000));
}

TEST(StorageHdf5, AttributesRoundTrip) {
  const TempDir dir;
  const Attributes attributes{{"kind", "shard"},
                              {"weight_version", std::int64_t{3}},
                              {"negative", std::int64_t{-5}},
                              {"empty", ""},
                              {"config", std::string(300'000, 'x')}};  // longer than an object header
  create_hdf5(dir / "a.h5", attributes, {{"w", DType::kU8, Shape{1}}})->commit();
  EXPECT_EQ(read_attributes(dir / "a.h5"), attributes);
  EXPECT_EQ(read_config_text(dir / "a.h5"), std::get<std::string>(attributes.at("config")));
  EXPECT_EQ(read_config_text(dir.string()), std::get<std::string>(attributes.at("config")));
  // What the file carries is of its tensors; who put something beside it may have had others in mind.
  put_file(dir / "config.json", "beside");
  EXPECT_EQ(read_config_text(dir / "a.h5"), std::get<std::string>(attributes.at("config")));
  create_hdf5(dir / "without.h5", {}, {{"w", DType::kU8, Shape{1}}})->commit();
  EXPECT_EQ(read_config_text(dir / "without.h5"), "beside");
}

TEST(StorageHdf5, AttributesOfOtherPrograms) {
  const TempDir dir;
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir / "a.h5");
    put_text_attribute(file.get(), "weightcast.kind", "shard   ", H5T_STR_SPACEPAD);
    put_text_attribute(file.get(), "weightcast.other", std::string("text\0\0", 6), H5T_STR_NULLTERM);
    put_text_attribute(file.get(), "unrelated", "x", H5T_STR_NULLPAD);
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate(H5S_SCALAR), kFile));
    const Hdf5Attribute number(WEIGHTCAST_HDF5(
        H5Acreate2(file.get(), "weightcast.tp", H5T_STD_I16BE, space.get(), H5P_DEFAULT, H5P_DEFAULT),
        kFile));
    const int value = 12;
    WEIGHTCAST_HDF5(H5Awrite(number.get(), H5T_NATIVE_INT, &value), kFile);
  }
  EXPECT_EQ(read_attributes(dir / "a.h5"),
            (Attributes{{"kind", "shard"}, {"other", "text"}, {"tp", std::int64_t{12}}}));
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir / "b.h5");
    const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate(H5S_NULL), kFile));
    const Hdf5Attribute nothing(WEIGHTCAST_HDF5(
        H5Acreate2(file.get(), "weightcast.tp", H5T_STD_I16BE, space.get(), H5P_DEFAULT, H5P_DEFAULT),
        kFile));
  }
  EXPECT_TRUE(has(message_of<InputError>([&] { read_attributes(dir / "b.h5"); }),
                  {"b.h5", "'weightcast.tp'", "neither one integer nor one text; write the file again"}));
}

TEST(StorageHdf5, TypesAreWhatOtherProgramsExpect) {
  const TempDir dir;
  create_hdf5(dir / "a.h5", {},
              {{"bf16", DType::kBF16, Shape{3, 2}},
               {"f16", DType::kF16, Shape{1}},
               {"fp8", DType::kF8E4M3, Shape{1}}})
      ->commit();
  const Hdf5Lock lock;
  const Hdf5File file(WEIGHTCAST_HDF5(H5Fopen((dir / "a.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), kFile));
  struct Fields {
    std::size_t sign, exponent, exponent_bits, mantissa, mantissa_bits, bias;
    bool operator==(const Fields&) const = default;
  };
  const auto fields_of = [&](const char* name) {
    const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dopen2(file.get(), name, H5P_DEFAULT), kFile));
    const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(dataset.get()), kFile));
    EXPECT_EQ(H5Tget_class(type.get()), H5T_FLOAT);
    EXPECT_EQ(H5Tget_size(type.get()), 2U);
    EXPECT_EQ(H5Tget_precision(type.get()), 16U);
    EXPECT_EQ(H5Tget_offset(type.get()), 0);
    EXPECT_EQ(H5Tget_order(type.get()), H5T_ORDER_LE);
    EXPECT_EQ(H5Tget_norm(type.get()), H5T_NORM_IMPLIED);
    const Hdf5Properties creation(WEIGHTCAST_HDF5(H5Dget_create_plist(dataset.get()), kFile));
    EXPECT_EQ(H5Pget_layout(creation.get()), H5D_CONTIGUOUS);
    Fields fields{};
    WEIGHTCAST_HDF5(H5Tget_fields(type.get(), &fields.sign, &fields.exponent, &fields.exponent_bits,
                                  &fields.mantissa, &fields.mantissa_bits),
                    kFile);
    fields.bias = H5Tget_ebias(type.get());
    return fields;
  };
  EXPECT_EQ(fields_of("bf16"), (Fields{15, 7, 8, 0, 7, 127}));
  EXPECT_EQ(fields_of("f16"), (Fields{15, 10, 5, 0, 10, 15}));
  const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dopen2(file.get(), "fp8", H5P_DEFAULT), kFile));
  const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(dataset.get()), kFile));
  EXPECT_GT(H5Tequal(type.get(), H5T_STD_U8LE), 0);
}

TEST(StorageHdf5, TheLibraryReadsBfloat16AsNumbers) {
  const TempDir dir;
  auto writer = create_hdf5(dir / "a.h5", {}, {{"w", DType::kBF16, Shape{4}}});
  const std::array<float, 4> numbers{1.0F, -2.5F, 3.0e38F, 1.0e-40F};
  std::array<std::uint16_t, 4> halves{};
  for (std::size_t i = 0; i < 4; ++i) {
    halves.at(i) = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(numbers.at(i)) >> 16);
  }
  writer->write(0, 0, std::as_bytes(std::span(halves)));
  writer->commit();
  const Hdf5Lock lock;
  const Hdf5File file(WEIGHTCAST_HDF5(H5Fopen((dir / "a.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), kFile));
  const Hdf5Dataset dataset(WEIGHTCAST_HDF5(H5Dopen2(file.get(), "w", H5P_DEFAULT), kFile));
  std::array<float, 4> read{};
  WEIGHTCAST_HDF5(H5Dread(dataset.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, read.data()),
                  kFile);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(read.at(i), std::bit_cast<float>(static_cast<std::uint32_t>(halves.at(i)) << 16));
  }
}

TEST(StorageHdf5, CompressedChunksAreReadThroughTheLibrary) {
  const TempDir dir;
  const auto data = random_bytes(84'000, 1);
  const auto stack = random_bytes(2310, 2);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir / "a.h5");
    put_dataset(file, "w", H5T_STD_I32LE, H5T_NATIVE_INT32, {300, 70}, data.data(), {32, 16});
    put_dataset(file, "stack", H5T_STD_U16LE, H5T_NATIVE_UINT16, {3, 5, 7, 11}, stack.data(), {2, 2, 4, 4});
    put_dataset(file, "vector", H5T_STD_U8LE, H5T_NATIVE_UINT8, {1000}, data.data(), {100});
  }
  const Checkpoint checkpoint = read_checkpoint(dir / "a.h5");
  const CheckpointReader reader(checkpoint);
  const auto expect_box = [&](const std::string& name, std::span<const std::byte> whole, const Box& box) {
    const StoredTensor& tensor = *checkpoint.find(name);
    EXPECT_EQ(tensor.offset, StoredTensor::kThroughLibrary);
    EXPECT_EQ(read_box(reader, tensor, box), cut(whole, tensor.shape, dtype_bytes(tensor.dtype), box))
        << name << ": " << box.to_string();
  };
  for (const Box& box : {Box{0, 300, 0, 70}, Box{31, 2, 15, 3}, Box{7, 100, 69, 1}, Box{299, 1, 0, 70}}) {
    expect_box("w", data, box);
  }
  // Rows of the matrix view that start and end inside the dimensions folded into it.
  for (std::int64_t row = 0; row < 105; row += 4) {
    for (std::int64_t rows = 1; row + rows <= 105; rows += 9) expect_box("stack", stack, {row, rows, 2, 6});
  }
  expect_box("stack", stack, {0, 105, 0, 11});
  expect_box("vector", std::span(data).first(1000), {0, 1, 99, 401});
}

TEST(StorageHdf5, BigEndianComesOutNative) {
  const TempDir dir;
  const auto data = random_bytes(6400, 3);  // NaNs of every kind among them: bits must not change
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir / "a.h5");
    put_dataset(file, "i64", H5T_STD_I64BE, H5T_NATIVE_INT64, {40, 20}, data.data());
    put_dataset(file, "f32", H5T_IEEE_F32BE, H5T_NATIVE_FLOAT, {40, 20}, data.data());
    put_dataset(file, "f64", H5T_IEEE_F64BE, H5T_NATIVE_DOUBLE, {40, 20}, data.data());
    put_dataset(file, "u16", H5T_STD_U16BE, H5T_NATIVE_UINT16, {40, 20}, data.data());
    put_dataset(file, "u8", H5T_STD_U8BE, H5T_NATIVE_UINT8, {40, 20}, data.data());
    put_dataset(file, "bf16", bfloat16(H5T_ORDER_BE).get(), bfloat16(H5T_ORDER_LE).get(), {40, 20},
                data.data());
    name_dtype(file, "u16", "bfloat16");
  }
  const Checkpoint checkpoint = read_checkpoint(dir / "a.h5");
  const CheckpointReader reader(checkpoint);
  const std::vector<std::pair<std::string, DType>> expected{{"i64", DType::kI64}, {"f32", DType::kF32},
                                                            {"f64", DType::kF64}, {"u16", DType::kBF16},
                                                            {"u8", DType::kU8},   {"bf16", DType::kBF16}};
  for (const auto& [name, dtype] : expected) {
    const StoredTensor& tensor = *checkpoint.find(name);
    EXPECT_EQ(tensor.dtype, dtype) << name;
    EXPECT_EQ(tensor.offset == StoredTensor::kThroughLibrary, name != "u8") << name;
    const auto whole = std::span(data).first(static_cast<std::size_t>(tensor.bytes()));
    EXPECT_EQ(read_whole(reader, tensor), std::vector(whole.begin(), whole.end())) << name;
    const Box box{3, 9, 5, 6};
    EXPECT_EQ(read_box(reader, tensor, box), cut(whole, tensor.shape, dtype_bytes(dtype), box)) << name;
  }
}

TEST(StorageHdf5, OddFilesOfOtherPrograms) {
  const TempDir dir;
  const auto data = random_bytes(100, 4);
  {
    const Hdf5Lock lock;
    {
      const Hdf5File other = create_file(dir / "other.h5");
      put_dataset(other, "w", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data.data());
    }
    const Hdf5File file = create_file(dir / "a.h5", 1024);
    put_dataset(file, "plain", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data.data());
    put_dataset(file, "unwritten", H5T_STD_I32LE, H5T_NATIVE_INT32, {5}, nullptr);
    put_dataset(file, "fp8", H5T_STD_U8LE, H5T_NATIVE_UINT8, {100}, data.data());
    name_dtype(file, "fp8", "float8_e4m3fn");
    WEIGHTCAST_HDF5(H5Lcreate_external("other.h5", "/w", file.get(), "elsewhere", H5P_DEFAULT, H5P_DEFAULT),
                    kFile);
    WEIGHTCAST_HDF5(H5Lcreate_soft("/plain", file.get(), "alias", H5P_DEFAULT, H5P_DEFAULT), kFile);
    const Hdf5Object group(
        WEIGHTCAST_HDF5(H5Gcreate2(file.get(), "group", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), kFile));
    const Hdf5Type truth(WEIGHTCAST_HDF5(H5Tenum_create(H5T_NATIVE_INT8), kFile));
    for (const auto value : std::array<std::int8_t, 2>{0, 1}) {
      WEIGHTCAST_HDF5(H5Tenum_insert(truth.get(), value == 0 ? "FALSE" : "TRUE", &value), kFile);
    }
    const std::array<std::int8_t, 3> bools{1, 0, 1};
    put_dataset(file, "bools", truth.get(), truth.get(), {3}, bools.data());
  }
  const Checkpoint checkpoint = read_checkpoint(dir / "a.h5", OtherFiles::kBelowFolder);
  const CheckpointReader reader(checkpoint);
  EXPECT_EQ(checkpoint.tensors.size(), 6U);
  EXPECT_GE(checkpoint.find("plain")->offset, 1024);
  for (const char* name : {"plain", "alias", "elsewhere", "fp8"}) {
    EXPECT_EQ(read_whole(reader, *checkpoint.find(name)), data) << name;
  }
  EXPECT_EQ(checkpoint.find("fp8")->dtype, DType::kF8E4M3);
  EXPECT_EQ(checkpoint.find("bools")->dtype, DType::kBool);
  EXPECT_EQ(read_whole(reader, *checkpoint.find("bools")),
            (std::vector<std::byte>{std::byte{1}, {}, std::byte{1}}));
  EXPECT_TRUE(has(message_of<InputError>([&] { read_whole(reader, *checkpoint.find("unwritten")); }),
                  {dir / "a.h5", "unwritten", "never written"}));
}

TEST(StorageHdf5, FourThreadsReadThroughTheLibrary) {
  const TempDir dir;
  const auto data = random_bytes(20'000, 5);
  {
    const Hdf5Lock lock;
    const Hdf5File file = create_file(dir / "a.h5");
    put_dataset(file, "chunked", H5T_STD_U8LE, H5T_NATIVE_UINT8, {200, 100}, data.data(), {10, 10});
    put_dataset(file, "plain", H5T_STD_U8LE, H5T_NATIVE_UINT8, {200, 100}, data.data());
  }
  const Checkpoint checkpoint = read_checkpoint(dir / "a.h5");
  const CheckpointReader reader(checkpoint);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (std::int64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::int64_t i = 0; i < 50; ++i) {
        const Box box{i * 3 + thread, 40, thread * 10, 30};
        const auto& tensor = *checkpoint.find(i % 2 == 0 ? "chunked" : "plain");
        if (read_box(reader, tensor, box) != cut(data, tensor.shape, 1, box)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(StorageHdf5, WrongFilesAreRefused) {
  const TempDir dir;
  const auto refused = [&](const std::string& name) {
    return message_of<InputError>([&] { read_checkpoint(dir / name); });
  };
  put_file(dir / "text.h5", "this is not what it says, by far");
  EXPECT_TRUE(has(refused("text.h5"), {"text.h5", "not an HDF5 file"}));
  EXPECT_TRUE(has(message_of<InputError>([&] { read_attributes(dir / "text.h5"); }),
                  {"text.h5", "not an HDF5 file"}));
  EXPECT_TRUE(
      has(message_of<IoError>([&] { read_attributes(dir / "none.h5"); }), {"none.h5", "No such file"}));

  create_hdf5(dir / "whole.h5", {}, {{"w", DType::kF32, Shape{1000}}})->commit();
  put_file(dir / "cut.h5", get_file(dir / "whole.h5").substr(0, 3000));
  EXPECT_TRUE(has(refused("cut.h5"), {"cut.h5", "truncated"}));

  create_hdf5(dir / "nothing.h5", {}, {})->commit();
  EXPECT_TRUE(has(refused("nothing.h5"), {"nothing.h5", "no dataset"}));
  {
    const Hdf5Lock lock;
    const std::vector<double> data(32);
    const Hdf5File version = create_file(dir / "version.h5");
    put_dataset(version, "w", H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, {2}, data.data());
    put_text_attribute(version.get(), "weightcast.weight_version", "seven", H5T_STR_NULLPAD);
  }
  EXPECT_TRUE(has(refused("version.h5"), {"version.h5", "weight_version"}));
  EXPECT_TRUE(has(refused(""), {dir.string(), "HDF5 files", "name one of them"}));
}

// The library reads texts of variable length from where the attribute says, and as long as it is there, or
// makes room for as much as it says.
TEST(StorageHdf5, ATextThatLeadsOutOfItsHeapIsRefused) {
  const TempDir dir;
  const std::string path = dir / "a.h5";
  {
    const Hdf5Lock lock;
    const std::array<std::uint8_t, 3> data{};
    const Hdf5File file = create_file(path);  // of the old form, whose headers have no checksums
    put_dataset(file, "w", H5T_STD_U8LE, H5T_NATIVE_UINT8, {3}, data.data());
    write_hdf5_attribute(file.get(), "config", std::string("{}"), path);
  }
  EXPECT_EQ(read_config_text(path), "{}");
  const std::string bytes = get_file(path);
  const std::uint64_t heap = bytes.find("GCOL");
  ASSERT_NE(heap, std::string::npos);
  // Length, address and number of the text in the heap.
  const std::size_t address = bytes.find(std::string(reinterpret_cast<const char*>(&heap), sizeof heap));
  ASSERT_NE(address, std::string::npos);
  struct Wrong {
    std::size_t at;
    const char* what;
  };
  constexpr std::uint32_t kBeyond = 0x7fffff00;
  for (const Wrong& wrong : {Wrong{address + sizeof heap, "the HDF5 library does not survive what"},
                             Wrong{address - sizeof kBeyond, "needs more than 1 GiB of memory for what"}}) {
    SCOPED_TRACE(wrong.what);
    std::string changed = bytes;
    changed.replace(wrong.at, sizeof kBeyond, reinterpret_cast<const char*>(&kBeyond), sizeof kBeyond);
    put_file(path, changed);
#ifdef __SANITIZE_ADDRESS__
    const char* const what = "copy it again";  // there a process that asks for too much memory ends
#else
    const char* const what = wrong.what;
#endif
    for (const auto& read : std::vector<std::function<void()>>{[&] { read_attributes(path); },
                                                               [&] { read_config_text(path); }}) {
      EXPECT_TRUE(has(message_of<InputError>(read), {path, what, "copy it again"}));
    }
  }
}

TEST(StorageHdf5, WhatOtherReadersCannotListIsDamaged) {
  const TempDir dir;
  std::vector<DatasetSpec> datasets;
  for (int i = 0; i < 40; ++i) datasets.push_back({fmt::format("w{}", i), DType::kU8, Shape{3}});
  create_hdf5(dir / "a.h5", {}, datasets)->commit();
  EXPECT_EQ(read_checkpoint(dir / "a.h5").tensors.size(), 40U);
  // What is free in the heap of the links' names: nobody needs it to find a dataset.
  std::string bytes = get_file(dir / "a.h5");
  const std::size_t at = bytes.find("FSHD");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 8] = static_cast<char>(bytes[at + 8] ^ 1);
  put_file(dir / "a.h5", bytes);
  EXPECT_TRUE(has(message_of<InputError>([&] { read_checkpoint(dir / "a.h5"); }),
                  {dir / "a.h5", "checksum", "the file is damaged, copy it again"}));
}

}  // namespace
}  // namespace weightcast
