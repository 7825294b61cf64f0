#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "emulated_update.hpp"
#include "source/binding.hpp"
#include "source/bound_reader.hpp"
#include "storage/writer.hpp"
#include "support/temp_dir.hpp"

namespace weightcast {

namespace {

/// A model of the tensors of a catalog, without parameters.
ListedFamily family_of(const Catalog& catalog) {
  return {catalog, [](const auto&, const auto&, const auto&) { return std::vector<Parameter>(); }};
}

std::vector<float> random_floats(std::int64_t count) {
  std::mt19937 random(1);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = std::uniform_real_distribution<float>(-1, 1)(random);
  return values;
}

/// A checkpoint with one float32 tensor.
std::string write_floats(const test_support::TempDir& dir, Shape shape, const std::vector<float>& values) {
  std::string path = dir / "checkpoint";
  const auto writer = create_safetensors(path, "{}", {{"wide", DType::kF32, shape}}, std::int64_t{1} << 40);
  writer->write(0, 0, std::as_bytes(std::span(values)));
  writer->commit();
  return path;
}

class CastWhileReading : public ::testing::TestWithParam<Shape> {};

TEST_P(CastWhileReading, IsTheSameForAnyBox) {
  const Shape shape = GetParam();
  const std::vector<float> values = random_floats(shape.elements());
  const test_support::TempDir dir;
  const Checkpoint checkpoint = read_checkpoint(write_floats(dir, shape, values));
  Catalog catalog;
  catalog.add("wide", DType::kBF16, shape);
  const ListedFamily family = family_of(catalog);
  const Binding binding = bind(family, checkpoint);
  EXPECT_EQ(binding.cast_tensors, 1);
  EXPECT_NE(binding.note().find("1 tensors"), std::string::npos) << binding.note();
  const BoundReader reader(catalog, checkpoint, binding.held);
  const std::int64_t rows = shape.rows();
  const std::int64_t cols = shape.cols();
  for (const Box& box : {Box{0, rows, 0, cols}, Box{rows / 2, rows - rows / 2, cols / 3, cols / 2},
                         Box{rows - 1, 1, cols - 1, 1}, Box{0, rows, 5, 1}}) {
    std::vector<std::uint16_t> read(static_cast<std::size_t>(box.area()));
    reader.read(0, box, reinterpret_cast<std::byte*>(read.data()));
    std::int64_t differ = 0;
    for (std::int64_t i = 0; i < box.area(); ++i) {
      const std::int64_t at = (box.row + i / box.cols) * cols + box.col + i % box.cols;
      differ += read[static_cast<std::size_t>(i)] != bf16_bits(values[static_cast<std::size_t>(at)]) ? 1 : 0;
    }
    EXPECT_EQ(differ, 0) << box.to_string();
  }
}

// The pieces that are cast at once hold a mebi of elements: fewer, many rows of them, rows that are longer.
INSTANTIATE_TEST_SUITE_P(Shapes, CastWhileReading,
                         ::testing::Values(Shape{7, 30}, Shape{1501, 1009}, Shape{3, (1 << 20) + 77},
                                           Shape{(1 << 20) + 3}));

TEST(Locate, FindsWhatLiesInTheFileAsItIsWanted) {
  const test_support::TempDir dir;
  const Checkpoint checkpoint = read_checkpoint(write_floats(dir, {8, 10}, random_floats(80)));
  Catalog catalog;
  catalog.add("wide", DType::kF32, {8, 10});
  // The two halves of the tensor's rows lie in the file in the other order.
  const StoredTensor& stored = checkpoint.tensors.front();
  const HeldWeights held({held_in(stored, 0, 0, {0, 4, 0, 10}, 40), held_in(stored, 0, 0, {4, 4, 0, 10})}, 1);
  const BoundReader reader(catalog, checkpoint, held);
  const auto offset = [&](const Box& box) {
    const auto place = reader.locate(0, box);
    return place ? place->offset - stored.offset : -1;
  };
  EXPECT_EQ(offset({0, 4, 0, 10}), 160);
  EXPECT_EQ(offset({5, 2, 0, 10}), 40);
  EXPECT_EQ(offset({2, 1, 3, 4}), 252);
  EXPECT_EQ(offset({2, 2, 3, 4}), -1);
  EXPECT_EQ(offset({3, 2, 0, 10}), -1);
  // What is cast does not lie there as it is wanted.
  Catalog narrow;
  narrow.add("wide", DType::kBF16, {8, 10});
  EXPECT_FALSE(BoundReader(narrow, checkpoint, held).locate(0, {0, 4, 0, 10}));
}

// Of one stored tensor, too: a half that is rounded, a half that is not, and a few elements amid a row.
TEST(Cast, FollowsFromWhatEachTensorIs) {
  const test_support::TempDir dir;
  const std::vector<float> values = random_floats(80);
  const Checkpoint checkpoint = read_checkpoint(write_floats(dir, {8, 10}, values));
  Catalog catalog;
  catalog.add("rounded", DType::kBF16, {4, 10});
  catalog.add("whole", DType::kF32, {4, 10});
  catalog.add("amid", DType::kF32, {3});
  const StoredTensor& stored = checkpoint.tensors.front();
  const HeldWeights held({held_in(stored, 0, 0, {0, 4, 0, 10}), held_in(stored, 0, 1, {0, 4, 0, 10}, 40),
                          held_in(stored, 0, 2, {0, 1, 0, 3}, 57)},
                         3);
  const BoundReader reader(catalog, checkpoint, held);
  std::vector<std::uint16_t> rounded(20);
  reader.read(0, {2, 2, 0, 10}, reinterpret_cast<std::byte*>(rounded.data()));
  for (std::size_t i = 0; i < rounded.size(); ++i) EXPECT_EQ(rounded[i], bf16_bits(values[20 + i])) << i;
  std::vector<float> whole(6);
  reader.read(1, {1, 2, 4, 3}, reinterpret_cast<std::byte*>(whole.data()));
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_EQ(whole[i], values[54 + i / 3 * 10 + i % 3]) << i;
  std::vector<float> amid(2);
  reader.read(2, {0, 1, 1, 2}, reinterpret_cast<std::byte*>(amid.data()));
  EXPECT_EQ(amid, std::vector<float>(values.begin() + 58, values.begin() + 60));
}

TEST(Binding, RefusesOtherConversions) {
  const test_support::TempDir dir;
  const Checkpoint checkpoint = read_checkpoint(write_floats(dir, {2, 8}, random_floats(16)));
  Catalog catalog;
  catalog.add("wide", DType::kF16, {2, 8});
  try {
    bind(family_of(catalog), checkpoint);
    ADD_FAILURE() << "bound";
  } catch (const InputError& error) {
    for (const char* word : {"wide", "float32", "float16", "checkpoint"}) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  }
}

}  // namespace

}  // namespace weightcast
