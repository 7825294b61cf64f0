#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "emulated_update.hpp"
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
  const BoundReader reader(catalog, checkpoint, binding);
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
  Binding binding;
  binding.bounds = {{0, Cast::kNone, {0, 4, 0, 10}, 4, 0}, {0, Cast::kNone, {4, 4, 0, 10}, 0, 0}};
  binding.starts = {0, 2};
  const BoundReader reader(catalog, checkpoint, binding);
  const std::int64_t data = checkpoint.tensors.front().offset;
  const auto offset = [&](const Box& box) {
    const auto place = reader.locate(0, box);
    return place ? place->offset - data : -1;
  };
  EXPECT_EQ(offset({0, 4, 0, 10}), 160);
  EXPECT_EQ(offset({5, 2, 0, 10}), 40);
  EXPECT_EQ(offset({2, 1, 3, 4}), 252);
  EXPECT_EQ(offset({2, 2, 3, 4}), -1);
  EXPECT_EQ(offset({3, 2, 0, 10}), -1);
  binding.bounds.front().cast = Cast::kRound;
  EXPECT_EQ(offset({0, 4, 0, 10}), -1);
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
