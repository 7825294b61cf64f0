// Boxes of tensors in a trainer's memory, against what each element's indices say.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cstdint>
#include <span>
#include <vector>

#include "core/error.hpp"
#include "live/live_weights.hpp"
#include "live/manifest.hpp"
#include "model_configs.hpp"
#include "source/binding.hpp"

namespace weightcast {

namespace {

using Numbers = std::vector<std::int64_t>;

/// The value of every element: its number in the whole tensor.
std::vector<std::int64_t> published(const LiveEntry& entry) {
  std::vector<std::int64_t> values;
  const std::size_t dims = entry.shape.dims();
  for (std::int64_t i = 0; i < entry.shape.elements(); ++i) {
    std::int64_t left = i;
    std::int64_t value = 0;
    std::int64_t step = 1;
    for (std::size_t d = dims; d-- > 0;) {
      value += (entry.box->start[d] + left % entry.shape[d]) * step;
      left /= entry.shape[d];
      step *= entry.box->whole[d];
    }
    values.push_back(value);
  }
  return values;
}

/// Expects that what is held of a catalog tensor, which is `rows` rows of the whole from row `first` on, is
/// what the entry has, and returns how many elements that is.
std::int64_t expect_held(const LiveEntry& entry, std::int64_t first, std::int64_t rows) {
  const std::int64_t cols = entry.box->whole.cols();
  Manifest manifest;
  manifest.path = "trainer-0.json";
  manifest.segments.emplace_back().bytes = 1 << 20;
  manifest.entries.push_back(entry);
  const Checkpoint checkpoint = checkpoint_of(manifest);
  Catalog catalog;
  catalog.add("part", entry.dtype, {rows, cols});
  const Box whole = Box::whole(catalog[0].shape);
  const HeldWeights held({held_in(checkpoint.tensors.front(), 0, 0, whole, first * cols)}, 1);
  const std::vector<std::int64_t> values = published(entry);
  const std::int64_t element = dtype_bytes(entry.dtype);
  std::int64_t count = 0;
  const HeldWeights found = held_in_segments(manifest, checkpoint, held, catalog);
  for (const HeldBox& box : found.boxes()) {
    EXPECT_TRUE(whole.contains(box.box)) << box.box.to_string();
    for (std::int64_t r = 0; r < box.box.rows; ++r) {
      for (std::int64_t c = 0; c < box.box.cols; ++c, ++count) {
        const std::int64_t byte = box.at(box.box.row + r, box.box.col + c, element) - entry.offset;
        EXPECT_EQ(byte % element, 0);
        const std::int64_t expected = (first + box.box.row + r) * cols + box.box.col + c;
        EXPECT_EQ(values.at(static_cast<std::size_t>(byte / element)), expected);
      }
    }
  }
  return count;
}

LiveEntry entry_of(const Numbers& whole, const Numbers& start, const Numbers& shape) {
  LiveEntry entry;
  entry.name = "whole";
  entry.shape = Shape(std::span<const std::int64_t>(shape));
  entry.strides.resize(shape.size());
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0; stride *= shape[d]) entry.strides[d] = stride;
  entry.offset = 64;
  entry.box = LiveBox{Shape(std::span<const std::int64_t>(whole)), start};
  return entry;
}

TEST(LiveBoxes, OfEveryCutOfSmallTensorsAreFoundElementByElement) {
  int cuts = 0;
  for (const Numbers& whole : {Numbers{7}, Numbers{5, 4}, Numbers{3, 4, 2}, Numbers{2, 3, 2, 2}}) {
    // Every box: begin and end of each dimension.
    std::vector<std::pair<Numbers, Numbers>> boxes{{{}, {}}};
    for (const std::int64_t extent : whole) {
      std::vector<std::pair<Numbers, Numbers>> longer;
      for (const auto& [start, shape] : boxes) {
        for (std::int64_t first = 0; first <= extent; ++first) {
          for (std::int64_t last = first; last <= extent; ++last) {
            longer.emplace_back(start, shape);
            longer.back().first.push_back(first);
            longer.back().second.push_back(last - first);
          }
        }
      }
      boxes = std::move(longer);
    }
    for (const auto& [start, shape] : boxes) {
      const LiveEntry entry = entry_of(whole, start, shape);
      SCOPED_TRACE(fmt::format("{} of {}", entry.shape.to_string(), entry.box->whole.to_string()));
      const std::int64_t rows = entry.box->whole.rows();
      EXPECT_EQ(expect_held(entry, 0, rows), entry.shape.elements());
      // A stacked expert, for example, is some rows of what is stored.
      const std::int64_t half = rows / 2;
      EXPECT_EQ(expect_held(entry, 0, std::max<std::int64_t>(half, 1)) +
                    (rows > 1 ? expect_held(entry, half, rows - half) : 0),
                entry.shape.elements());
      ++cuts;
    }
  }
  EXPECT_GT(cuts, 3000);
}

TEST(LiveBoxes, OfWhatIsReadInOtherRowsAreRefused) {
  Manifest manifest;
  manifest.path = "trainer-0.json";
  manifest.segments.emplace_back().bytes = 1 << 20;
  LiveEntry& entry = manifest.entries.emplace_back();
  entry.name = "experts_blocks";
  entry.dtype = DType::kU8;
  entry.shape = {1, 6, 2, 16};
  entry.strides = {192, 32, 16, 1};
  entry.box = LiveBox{{2, 6, 2, 16}, {1, 0, 0, 0}};
  const Checkpoint checkpoint = checkpoint_of(manifest);
  Catalog catalog;
  catalog.add("experts_blocks", DType::kF4E2M1x2, {2, 3, 64});  // of gate and up in one row
  HeldBox held = held_in(checkpoint.tensors.front(), 0, 0, Box::whole(catalog[0].shape), 0);
  held.pitch = 64;
  expect_has(message_of([&] { held_in_segments(manifest, checkpoint, HeldWeights({held}, 1), catalog); }),
             {"trainer-0.json", "experts_blocks [2, 6, 2, 16] is published in part", "rows of 64 elements",
              "publish the whole of it"});
}

TEST(LiveTensors, OfAnotherTypeThanTheModelsAreRefusedByName) {
  Manifest manifest;
  manifest.path = "trainer-0.json";
  manifest.segments.emplace_back().bytes = 1 << 20;
  LiveEntry entry = entry_of({2, 3}, {0, 0}, {2, 3});
  entry.box.reset();
  entry.dtype = DType::kF16;
  manifest.entries.push_back(entry);
  const Checkpoint published = checkpoint_of(manifest);
  try {
    require_castable(published, published.tensors.front(), DType::kBF16);
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("trainer-0.json: tensor whole is float16"), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("publish the copy that is bfloat16"), std::string::npos)
        << error.what();
  }
}

TEST(LiveTensors, ThatAreTiedAreOneMemory) {
  Manifest manifest;
  manifest.path = "trainer-0.json";
  manifest.segments.emplace_back().bytes = 1 << 20;
  LiveEntry entry = entry_of({2, 3}, {0, 0}, {2, 3});
  entry.box.reset();
  entry.aliases = {"head"};
  manifest.entries.push_back(entry);
  Catalog catalog;
  catalog.add("whole", entry.dtype, {2, 3});
  const auto bound = [&](const Checkpoint& published) {
    Binding binding;
    const auto number = [&](const char* name) {
      return static_cast<std::uint32_t>(published.find(name) - published.tensors.data());
    };
    binding.held = HeldWeights({held_in(*published.find("whole"), number("whole"), 0, {0, 2, 0, 3})}, 1);
    binding.copies.push_back({number("head"), 0});
    return binding;
  };
  const Checkpoint tied = checkpoint_of(manifest);
  EXPECT_NO_THROW(require_tied(tied, bound(tied), catalog));
  manifest.entries.front().aliases.clear();
  entry.aliases.clear();
  entry.name = "head";
  entry.offset = 4096;
  manifest.entries.push_back(entry);
  const Checkpoint apart = checkpoint_of(manifest);
  EXPECT_THROW(require_tied(apart, bound(apart), catalog), InputError);
}

TEST(LiveBoxes, OnlyWhatIsFloat32InAnyModelMayBeNarrower) {
  Manifest manifest;
  manifest.path = "trainer-0.json";
  manifest.segments.emplace_back().bytes = 1 << 20;
  LiveEntry entry;
  entry.name = "A_log";
  entry.dtype = DType::kBF16;
  entry.shape = {6};
  entry.offset = 64;
  manifest.entries.push_back(entry);
  const Checkpoint checkpoint = checkpoint_of(manifest);
  Catalog catalog;
  catalog.add("A_log", DType::kF32, {6});
  const HeldWeights held({held_in(checkpoint.tensors.front(), 0, 0, {0, 1, 0, 6})}, 1);
  EXPECT_THROW(held_in_segments(manifest, checkpoint, held, catalog), InputError);
  catalog.set_reading(0, 0, true);
  const HeldWeights found = held_in_segments(manifest, checkpoint, held, catalog);
  ASSERT_EQ(found.boxes().size(), 1u);
  EXPECT_TRUE(found.boxes().front().narrow);
  EXPECT_EQ(found.boxes().front().at(0, 3, 2), 64 + 3 * 2);
}

TEST(LiveTensors, CodesAndExponentsMayBeBytesToTheEngine) {
  Manifest manifest;
  manifest.path = "engine-0.json";
  manifest.role = Role::kEngine;
  manifest.segments.emplace_back().bytes = 1 << 20;
  LiveEntry& entry = manifest.entries.emplace_back();
  entry.name = "w13_weight";
  entry.shape = {4, 6};
  entry.strides = {6, 1};
  const auto refusal = [&](DType published, DType wanted) -> std::string {
    entry.dtype = published;
    const Parameter parameter{"w13_weight", wanted, {4, 6}, {}, {}};
    try {
      return PublishedTensors(manifest).parameter(parameter).name == "w13_weight" ? "" : "another one";
    } catch (const InputError& error) {
      return error.what();
    }
  };
  EXPECT_EQ(refusal(DType::kU8, DType::kF4E2M1x2), "");
  EXPECT_EQ(refusal(DType::kU8, DType::kF8E8M0), "");
  EXPECT_EQ(refusal(DType::kF8E4M3, DType::kF8E8M0), "");  // as FlashInfer's kernels see them
  EXPECT_EQ(refusal(DType::kF4E2M1x2, DType::kF4E2M1x2), "");
  expect_has(refusal(DType::kBF16, DType::kF4E2M1x2), {"engine-0.json", "bfloat16 [4, 6]", "e2m1x2 [4, 6]"});
  expect_has(refusal(DType::kU8, DType::kF8E4M3), {"uint8", "float8_e4m3fn"});
}

TEST(LiveTensors, OfAModuleAreOfTheTypeThatAnUpdateBrings) {
  const std::string path = std::string(WEIGHTCAST_TEST_DATA) + "/vllm/qwen3.5/config.json";
  const auto family = make_family(ModelConfig(text_of(path), path));
  for (const bool wide : {true, false}) {
    Manifest manifest;
    manifest.path = "engine-0.json";
    manifest.role = Role::kEngine;
    LiveSegment& segment = manifest.segments.emplace_back();
    for (const Tensor& tensor : family->catalog().tensors()) {
      LiveEntry& entry = manifest.entries.emplace_back();
      entry.name = tensor.name;
      entry.dtype = tensor.widened && !wide ? DType::kBF16 : tensor.dtype;
      entry.shape = tensor.shape;
      entry.strides.assign(tensor.shape.dims(), 1);
      for (std::size_t d = tensor.shape.dims(); d-- > 1;) {
        entry.strides[d - 1] = entry.strides[d] * tensor.shape[d];
      }
      entry.offset = segment.bytes;
      segment.bytes += tensor.bytes();
    }
    if (wide) {
      EXPECT_EQ(canonical_parameters(manifest, *family).size(), family->catalog().size());
    } else {
      // Four bytes an element would be written where two are.
      expect_has(message_of([&] { canonical_parameters(manifest, *family); }),
                 {"engine-0.json", "A_log", "bfloat16", "float32", "keep it in that type"});
    }
  }
}

}  // namespace

}  // namespace weightcast
