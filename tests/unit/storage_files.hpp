#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "storage/checkpoint.hpp"
#include "storage/reader.hpp"
#include "storage/writer.hpp"

namespace weightcast::testing_files {

/// A folder that is gone when the test ends.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "weightcast-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string string() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

inline void put_file(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  ASSERT_TRUE(file.good()) << path;
}

inline std::string get_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The names in a folder, sorted.
inline std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

/// The data files of a checkpoint.
inline std::vector<std::string> paths_of(const Checkpoint& checkpoint) {
  std::vector<std::string> paths;
  for (const CheckpointFile& file : checkpoint.files) paths.push_back(file.path);
  return paths;
}

/// The bytes of a safetensors file with that header and so many bytes of data.
inline std::string safetensors_bytes(std::string_view header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  bytes += header;
  for (std::size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i * 7 % 251);
  return bytes;
}

inline std::vector<std::byte> random_bytes(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(static_cast<std::size_t>(count));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

inline std::vector<std::byte> read_box(const CheckpointReader& reader, const StoredTensor& tensor,
                                       const Box& box) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(box.area() * dtype_bytes(tensor.dtype)));
  reader.read(tensor, box, bytes);
  return bytes;
}

inline std::vector<std::byte> read_whole(const CheckpointReader& reader, const StoredTensor& tensor) {
  return read_box(reader, tensor, Box::whole(tensor.shape));
}

/// The part of a whole tensor's bytes that a box covers.
inline std::vector<std::byte> cut(std::span<const std::byte> whole, const Shape& shape, std::int64_t element,
                                  const Box& box) {
  std::vector<std::byte> bytes;
  for (std::int64_t row = box.row; row < box.row + box.rows; ++row) {
    const auto run = whole.subspan(static_cast<std::size_t>((row * shape.cols() + box.col) * element),
                                   static_cast<std::size_t>(box.cols * element));
    bytes.insert(bytes.end(), run.begin(), run.end());
  }
  return bytes;
}

/// What an error of that class says; a test failure when there is none, or one of another class.
template <typename Expected, typename Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return "";
  }
  ADD_FAILURE() << "no error";
  return "";
}

/// Succeeds when the text contains every one of the words.
inline ::testing::AssertionResult has(const std::string& text,
                                      std::initializer_list<std::string_view> words) {
  for (const std::string_view word : words) {
    if (text.find(word) == std::string::npos) {
      return ::testing::AssertionFailure() << "'" << word << "' is not in: " << text;
    }
  }
  if (text.find('\n') != std::string::npos)
    return ::testing::AssertionFailure() << "more than one line: " << text;
  return ::testing::AssertionSuccess();
}

/// Datasets of every dtype and of odd shapes.
inline std::vector<DatasetSpec> varied_datasets() {
  std::vector<DatasetSpec> datasets;
  for (const DTypeInfo& info : dtype_table()) {
    datasets.push_back({"every." + std::string(info.name), info.dtype, Shape{5, 7}});
  }
  datasets.push_back({"model.layers.0.mlp.gate.weight", DType::kBF16, Shape{128, 64}});
  datasets.push_back({"vector", DType::kF32, Shape{33}});
  datasets.push_back({"scalar", DType::kI64, Shape{}});
  datasets.push_back({"empty", DType::kF32, Shape{0, 5}});
  datasets.push_back({"empty.columns", DType::kBF16, Shape{5, 0}});
  datasets.push_back({"cube", DType::kU16, Shape{3, 4, 5}});
  datasets.push_back({"tesseract", DType::kI8, Shape{2, 3, 4, 5}});
  return datasets;
}

inline std::vector<std::byte> data_of(const DatasetSpec& dataset) {
  return random_bytes(dataset.bytes(), std::hash<std::string>{}(dataset.name));
}

/// Writes every dataset in two pieces.
inline void write_all(TensorFileWriter& writer, const std::vector<DatasetSpec>& datasets) {
  for (std::size_t i = 0; i < datasets.size(); ++i) {
    const auto data = data_of(datasets[i]);
    const std::size_t half = data.size() / 2;
    writer.write(i, static_cast<std::int64_t>(half), std::span(data).subspan(half));
    writer.write(i, 0, std::span(data).first(half));
  }
}

/// Expects a checkpoint to hold exactly these datasets, with the data of `data_of`.
inline void expect_holds(const Checkpoint& checkpoint, const std::vector<DatasetSpec>& datasets) {
  EXPECT_EQ(checkpoint.tensors.size(), datasets.size());
  const CheckpointReader reader(checkpoint);
  for (const DatasetSpec& dataset : datasets) {
    SCOPED_TRACE(dataset.name);
    const StoredTensor* tensor = checkpoint.find(dataset.name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->dtype, dataset.dtype);
    EXPECT_EQ(tensor->shape, dataset.shape);
    EXPECT_EQ(read_whole(reader, *tensor), data_of(dataset));
  }
}

}  // namespace weightcast::testing_files
