#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/quantizer.hpp"
#include "core/units.hpp"
#include "model/layouts/moe_layout.hpp"
#include "model/layouts/row_shuffle.hpp"
#include "model/layouts/scale_swizzle.hpp"
#include "model/parameter.hpp"
#include "model/quantization.hpp"

// Layouts of experts against vectors made by FlashInfer, SGLang and DeepGEMM themselves, and for many sizes
// against their formulas, said a second time and element by element: where an element of a parameter comes
// from, which the product turns round.
namespace weightcast {

namespace {

using Tags = std::vector<std::int64_t>;

/// The tag of an element of a plane of a tensor, not zero.
using Source =
    std::function<std::int64_t(std::uint32_t tensor, Plane plane, std::int64_t row, std::int64_t col)>;

constexpr std::int64_t kUnwritten = -1;
constexpr std::int64_t kScalar = std::int64_t{1} << 50;  ///< and the scope

/// The elements of a parameter that is filled from `source`, zero where it is padding. Expects every byte to
/// be written once, and bytes of an element to lie together.
class Filled {
 public:
  Filled(const Parameter& parameter, const Source& source)
      : element_(dtype_bytes(parameter.dtype)), bytes_(size_of(parameter.bytes()), kUnwritten) {
    for (const Part& part : parameter.parts) {
      const Box box = part.form.of(part.box);
      for (std::int64_t row = 0; row < box.rows; ++row) {
        for (std::int64_t byte = 0; byte < box.cols * element_; ++byte) {
          const std::int64_t tag =
              source(part.tensor, part.form.plane, box.row + row, box.col + byte / element_);
          const std::int64_t at = part.layout.plain()
                                      ? row * part.pitch + byte
                                      : part.layout.row_offset(row) + part.layout.byte_offset(byte);
          put(part.offset + at, tag * 8 + byte % element_);
        }
      }
    }
    for (const Padding& padding : parameter.padding) {
      for (std::int64_t row = 0; row < padding.rows; ++row) {
        for (std::int64_t byte = padding.byte; byte < padding.byte + padding.bytes; ++byte) {
          const std::int64_t at = padding.layout.plain() ? byte
                                                         : padding.layout.row_offset(padding.row + row) +
                                                               padding.layout.byte_offset(byte);
          put(padding.offset + at, 0);
        }
      }
    }
    for (const Scalar& scalar : parameter.scalars) {
      for (std::int64_t byte = 0; byte < 4; ++byte) {
        put(scalar.offset + byte, (kScalar + scalar.scope) * 8 + byte);
      }
    }
  }

  Tags elements() const {
    Tags tags;
    int torn = 0;
    for (std::size_t at = 0; at < bytes_.size(); at += size_of(element_)) {
      const std::int64_t first = bytes_[at];
      torn += first == kUnwritten || first % 8 != 0 ? 1 : 0;
      for (std::int64_t byte = 1; byte < element_; ++byte) {
        const std::int64_t expected = first == 0 ? 0 : first + byte;
        torn += bytes_[at + size_of(byte)] == expected ? 0 : 1;
      }
      tags.push_back(first / 8);
    }
    EXPECT_EQ(torn, 0) << "bytes are missing or not where their element is";
    EXPECT_EQ(wrong_, 0) << "bytes outside, or written twice";
    return tags;
  }

 private:
  static std::size_t size_of(std::int64_t value) { return static_cast<std::size_t>(value); }

  void put(std::int64_t at, std::int64_t value) {
    if (at < 0 || at >= static_cast<std::int64_t>(bytes_.size()) || bytes_[size_of(at)] != kUnwritten) {
      ++wrong_;
    } else {
      bytes_[size_of(at)] = value;
    }
  }

  std::int64_t element_;
  Tags bytes_;
  int wrong_ = 0;
};

nlohmann::json golden(const std::string& name) {
  std::ifstream file(fmt::format("{}/golden/{}.json", WEIGHTCAST_TEST_DATA, name));
  EXPECT_TRUE(file.good()) << name;
  return nlohmann::json::parse(file);
}

/// Tags of a vector in which 0 is an element, too.
Tags counted_from_one(const nlohmann::json& vector) {
  Tags tags = vector.get<Tags>();
  for (std::int64_t& tag : tags) ++tag;
  return tags;
}

std::optional<Quantizer> quantizer_of(const std::string& text) {
  if (text.empty()) return std::nullopt;
  return parse_quantizer(text);
}

/// Experts of bf16: tensors 3e, 3e + 1, 3e + 2 are gate, up and down of expert e.
struct Experts {
  Experts(std::int64_t count, std::int64_t inner_size, std::int64_t hidden_size, const std::string& quantize)
      : inner(inner_size), hidden(hidden_size), quantizer(quantizer_of(quantize)) {
    for (std::int64_t e = 0; e < count; ++e) {
      slots.push_back({catalog.add(fmt::format("{}.gate.weight", e), DType::kBF16, {inner, hidden}),
                       catalog.add(fmt::format("{}.up.weight", e), DType::kBF16, {inner, hidden}),
                       catalog.add(fmt::format("{}.down.weight", e), DType::kBF16, {hidden, inner})});
    }
    if (quantizer) quantization.emplace(catalog, *quantizer);
  }

  LocalExperts rank(std::int64_t parts, std::int64_t part) const {
    return {"experts", slots, parts, part, quantization ? &*quantization : nullptr};
  }

  std::vector<Parameter> parameters(const ExpertMatrices& matrices, std::int64_t parts = 1,
                                    std::int64_t part = 0) const {
    std::vector<Parameter> result;
    add_experts(catalog, rank(parts, part), matrices, result);
    return result;
  }

  /// With what the inner size is padded to, as the vectors have it.
  std::vector<Parameter> parameters(const std::string& layout, std::int64_t inner_unit) const {
    ExpertMatrices matrices = find_moe_layout(layout).matrices(quantizer);
    matrices.inner_unit = inner_unit;
    return parameters(matrices);
  }

  std::int64_t inner;
  std::int64_t hidden;
  std::optional<Quantizer> quantizer;
  Catalog catalog;
  std::vector<ExpertTensors> slots;
  std::optional<Quantization> quantization;
};

/// As the vectors tag one expert's planes: gate, then up behind it; down from the start again.
Source counted(const Experts& experts) {
  return [&experts](std::uint32_t tensor, Plane plane, std::int64_t row, std::int64_t col) {
    const bool down = tensor == 2;
    PlaneForm form;
    if (plane != Plane::kValues)
      form = experts.quantization->form(plane, down ? experts.inner : experts.hidden);
    const std::int64_t rows = ceil_div(experts.inner, form.block_rows > 0 ? form.block_rows : 1);
    const std::int64_t cols = ceil_div(down ? experts.inner : experts.hidden, form.block_cols);
    return (tensor == 1 ? rows * cols : 0) + row * cols + col + 1;
  };
}

/// The element of each row's first column.
Tags first_of_rows(const Tags& tags, std::int64_t cols) {
  Tags firsts;
  for (std::size_t at = 0; at < tags.size(); at += static_cast<std::size_t>(cols)) firsts.push_back(tags[at]);
  return firsts;
}

Shape shape_of(const nlohmann::json& vector) {
  return Shape(vector.get<std::vector<std::int64_t>>());
}

TEST(LayoutsGolden, RowsShuffledInBlocksOf16) {
  int compared = 0;
  const nlohmann::json cases = golden("trtllm_gen_row_perms")["cases"];
  for (const auto& c : cases) {
    if (c["block"].get<int>() != 16) continue;
    // The vectors say where each row comes from, the layouts where it goes.
    const Tags shuffle = c["shuffle"].get<Tags>();
    for (std::int64_t row = 0; row < c["M"].get<std::int64_t>(); ++row) {
      EXPECT_EQ(shuffle.at(static_cast<std::size_t>(shuffled_rows_of_16(1).row_offset(row))), row);
    }
    ++compared;
  }
  EXPECT_GE(compared, 3);
}

TEST(LayoutsGolden, ScalesInTiles) {
  int compared = 0;
  const nlohmann::json cases = golden("sf_swizzle")["cases"];
  for (const auto& c : cases) {
    if (c["layout"] != "128x4") continue;
    const auto rows = c["rows"].get<std::int64_t>();
    const auto cols = c["cols"].get<std::int64_t>();
    SCOPED_TRACE(fmt::format("{} x {}", rows, cols));
    Catalog catalog;
    catalog.add("scales", DType::kU8, {rows, cols});
    const SlabLayout slab = swizzled({rows, cols, 1});
    const Parameter parameter = place(catalog, "scales", slab.shape,
                                      {{{0, {0, rows, 0, cols}}, 0, slab.layout, slab.rows, slab.cols}});
    const Filled filled(parameter, [&](auto, auto, auto row, auto col) { return row * cols + col + 1; });
    EXPECT_EQ(filled.elements(), c["out"].get<Tags>());
    ++compared;
  }
  EXPECT_EQ(compared, 3);
}

TEST(LayoutsGolden, TrtllmNvfp4) {
  const nlohmann::json c = golden("trtllm_nvfp4_moe");
  const Experts experts(1, c["I"], c["H"], "nvfp4");
  const std::vector<Parameter> parameters = experts.parameters("trtllm", c["I"]);
  ASSERT_EQ(parameters.size(), 9u);
  const auto expect = [&](std::size_t number, const std::string& name) {
    EXPECT_EQ(parameters[number].shape, shape_of(c[name + "_shape"])) << name;
    EXPECT_EQ(Filled(parameters[number], counted(experts)).elements(), counted_from_one(c[name])) << name;
  };
  expect(0, "gemm1_weights");
  expect(1, "gemm1_scales");
  expect(3, "gemm2_weights");
  expect(4, "gemm2_scales");
}

TEST(LayoutsGolden, TrtllmMxfp8) {
  const nlohmann::json c = golden("trtllm_mxfp8_moe");
  const Experts experts(1, c["I"], c["H"], "mxfp8");
  const std::vector<Parameter> parameters = experts.parameters("trtllm", c["I"]);
  ASSERT_EQ(parameters.size(), 4u);
  const auto filled = [&](std::size_t number) {
    return Filled(parameters[number], counted(experts)).elements();
  };
  EXPECT_EQ(first_of_rows(filled(0), c["H"]), counted_from_one(c["w13_first_byte_of_row"]));
  EXPECT_EQ(filled(1), counted_from_one(c["w13_scale"]));
  EXPECT_EQ(parameters[1].shape, shape_of(c["w13_scale_shape"]));
  EXPECT_EQ(first_of_rows(filled(2), c["I"]), counted_from_one(c["w2_first_byte_of_row"]));
  EXPECT_EQ(filled(3), counted_from_one(c["w2_scale"]));
  EXPECT_EQ(parameters[3].shape, shape_of(c["w2_scale_shape"]));
}

TEST(LayoutsGolden, TrtllmFp8) {
  const nlohmann::json block = golden("trtllm_fp8_moe")["deepseek_fp8"];
  const Experts for_w13(1, block["I"], block["H"], "fp8-block");
  const Parameter w13 = for_w13.parameters("trtllm-shuffled", block["I"]).at(0);
  EXPECT_EQ(w13.shape, (Shape{1, block["w13_shape"][0], block["w13_shape"][1], block["w13_shape"][2]}));
  EXPECT_EQ(Filled(w13, counted(for_w13)).elements(), counted_from_one(block["w13"]));
  const Experts for_w2(1, block["w2_I"], block["H"], "fp8-block");
  const Parameter w2 = for_w2.parameters("trtllm-shuffled", block["w2_I"]).at(2);
  EXPECT_EQ(w2.shape, (Shape{1, block["w2_shape"][0], block["w2_shape"][1], block["w2_shape"][2]}));
  EXPECT_EQ(Filled(w2, counted(for_w2)).elements(), counted_from_one(block["w2"]));

  const nlohmann::json whole = golden("trtllm_fp8_moe")["per_tensor_majork"];
  const Experts experts(1, whole["I"], whole["H"], "fp8-tensor");
  const std::vector<Parameter> parameters = experts.parameters("trtllm", whole["I"]);
  ASSERT_EQ(parameters.size(), 7u);
  EXPECT_EQ(first_of_rows(Filled(parameters[0], counted(experts)).elements(), whole["H"]),
            counted_from_one(whole["w13_rows_src"]));
  EXPECT_EQ(first_of_rows(Filled(parameters[2], counted(experts)).elements(), whole["I"]),
            counted_from_one(whole["w2_rows_src"]));
}

TEST(LayoutsGolden, TrtllmMxfp4FromInterleavedRows) {
  // gpt-oss keeps rows of gate and up interleaved, gate first; its engine swaps each pair and shuffles as if
  // there were one matrix. That is what interleaving up and gate gives.
  const nlohmann::json c = golden("gptoss_mxfp4_trtllm");
  const Experts experts(1, c["I"], c["H"], "mxfp4");
  const std::vector<Parameter> parameters = experts.parameters("trtllm", c["I"]);
  ASSERT_EQ(parameters.size(), 4u);
  const auto filled = [&](std::size_t number, std::int64_t cols) {
    return Filled(parameters[number],
                  [&](std::uint32_t tensor, auto, std::int64_t row, std::int64_t col) {
                    const std::int64_t stored = tensor == 2 ? row : 2 * row + tensor;
                    return stored * cols + col + 1;
                  })
        .elements();
  };
  const auto rows = [&](const Tags& tags, std::int64_t cols) {
    Tags sources = first_of_rows(tags, cols);
    for (std::int64_t& tag : sources) tag = (tag - 1) / cols;
    return sources;
  };
  const std::int64_t hidden = c["H"];
  const std::int64_t inner = c["I"];
  EXPECT_EQ(rows(filled(0, hidden / 2), hidden / 2), c["w13_row_src"].get<Tags>());
  EXPECT_EQ(filled(1, hidden / 32), counted_from_one(c["w13_scale"]));
  EXPECT_EQ(rows(filled(2, inner / 2), inner / 2), c["w2_row_src"].get<Tags>());
  EXPECT_EQ(filled(3, inner / 32), counted_from_one(c["w2_scale"]));
}

/// A row's number and a column.
std::int64_t row_tag(std::int64_t row, std::int64_t col) {
  return row * 4096 + col + 1;
}

TEST(LayoutsGolden, CuteDslInterleavesGroupsOf64) {
  const nlohmann::json c = golden("other_interleaves")["cute_dsl_group64"];
  const auto order = c["out"].get<Tags>();
  const std::int64_t inner = c["rows"].get<std::int64_t>() / 2;
  constexpr std::int64_t kHidden = 128;
  const Experts experts(1, inner, kHidden, "nvfp4");
  const std::vector<Parameter> parameters = experts.parameters("cute-dsl", 1);
  const auto source = [&](std::uint32_t tensor, auto, std::int64_t row, std::int64_t col) {
    return row_tag(tensor == 0 ? inner + row : row, col);
  };
  const Tags codes = Filled(parameters.at(0), source).elements();
  const Tags scales = Filled(parameters.at(1), source).elements();
  for (std::int64_t n = 0; n < 2 * inner; ++n) {
    const std::int64_t from = order.at(static_cast<std::size_t>(n));
    for (std::int64_t col = 0; col < kHidden / 2; ++col) {
      ASSERT_EQ(codes.at(static_cast<std::size_t>(n * kHidden / 2 + col)), row_tag(from, col)) << n;
    }
    for (std::int64_t col = 0; col < kHidden / 16; ++col) {
      const std::int64_t at =
          (n / 128 * (kHidden / 64) + col / 4) * 512 + n % 32 * 16 + n % 128 / 32 * 4 + col % 4;
      ASSERT_EQ(scales.at(static_cast<std::size_t>(at)), row_tag(from, col)) << n;
    }
  }
}

TEST(LayoutsGolden, DeepGemmMegaInterleavesGroupsOf8) {
  const nlohmann::json c = golden("other_interleaves")["deepgemm_mega_gran8"];
  const std::int64_t inner = c["rows"].get<std::int64_t>() / 2;
  constexpr std::int64_t kHidden = 16;
  const Experts experts(1, inner, kHidden, "");
  const auto source = [&](std::uint32_t tensor, auto, std::int64_t row, std::int64_t /*col*/) {
    return 1 + (tensor == 1 ? inner + row : row);
  };
  const Tags w13 = Filled(experts.parameters("deepgemm-mega", 1).at(0), source).elements();
  EXPECT_EQ(first_of_rows(w13, kHidden), counted_from_one(c["out"]));
}

TEST(LayoutsGolden, DeepGemmMegaScales) {
  const nlohmann::json c = golden("other_interleaves")["deepgemm_mega_sf_utccp"];
  const auto order = c["out"].get<Tags>();
  const std::int64_t rows = c["mn"];
  // down has as many rows as the vector; gate and up together, too.
  const Experts experts(1, rows / 2, rows, "mxfp4");
  const std::vector<Parameter> parameters = experts.parameters("deepgemm-mega", 1);
  ASSERT_EQ(parameters.size(), 4u);
  const auto source = [](std::uint32_t tensor, auto, std::int64_t row, std::int64_t col) {
    return row_tag(tensor == 2 ? row : row / 8 * 16 + row % 8 + (tensor == 1 ? 8 : 0), col);
  };
  for (const std::size_t number : {std::size_t{1}, std::size_t{3}}) {
    const Tags scales = Filled(parameters[number], source).elements();
    const std::int64_t cols = static_cast<std::int64_t>(scales.size()) / rows;
    for (std::int64_t n = 0; n < rows; ++n) {
      for (std::int64_t col = 0; col < cols; ++col) {
        const std::int64_t at = (col / 4 * rows + n) * 4 + col % 4;
        ASSERT_EQ(scales.at(static_cast<std::size_t>(at)),
                  row_tag(order.at(static_cast<std::size_t>(n)), col))
            << number << " " << n;
      }
    }
  }
}

TEST(LayoutsGolden, DeepGemmPackedScales) {
  const nlohmann::json cases = golden("deepgemm_ue8m0")["transform"];
  ASSERT_EQ(cases.size(), 2u);
  for (const auto& c : cases) {
    const std::int64_t rows = c["weight_rows"];
    const std::int64_t cols = c["weight_cols"];
    SCOPED_TRACE(fmt::format("{} x {}", rows, cols));
    const Experts experts(1, cols, rows, "fp8-block:ue8m0");
    const Parameter scales = experts.parameters("deepgemm", 1).at(3);
    EXPECT_EQ(scales.dtype, DType::kF8E8M0);
    const Tags bytes =
        Filled(scales, [&](auto, auto, std::int64_t row, std::int64_t col) {
          return c["block_exponent_bytes"][static_cast<std::size_t>(row / 128)][static_cast<std::size_t>(col)]
              .template get<std::int64_t>();
        }).elements();
    ASSERT_EQ(bytes.size(), 4 * c["storage_len"].get<std::size_t>());
    const std::int64_t aligned = c["strides"][1];
    EXPECT_EQ(c["strides"][0], 1);
    const auto word = [&](std::int64_t row, std::int64_t col) {
      std::int64_t value = 0;
      for (std::int64_t byte = 3; byte >= 0; --byte) {
        value = value * 256 + bytes.at(static_cast<std::size_t>((col * aligned + row) * 4 + byte));
      }
      return value;
    };
    for (std::int64_t row = 0; row < 4; ++row) {
      EXPECT_EQ(word(row, 0), c["column0"][static_cast<std::size_t>(row)]);
    }
    for (std::int64_t col = 0; col < c["packed_shape"][1]; ++col) {
      EXPECT_EQ(word(0, col), c["row0"][static_cast<std::size_t>(col)]);
      EXPECT_EQ(word(rows - 1, col), c["last_row"][static_cast<std::size_t>(col)]);
    }
  }
}

// The formulas, in the direction in which they are published.

enum Half { kGate, kUp };

/// Row n of w13 with halves of `rows` rows comes from row `row` of a half.
struct HalfRow {
  Half half = kGate;
  std::int64_t row = 0;
};
using W13Order = HalfRow (*)(std::int64_t n, std::int64_t rows);
using W2Order = std::int64_t (*)(std::int64_t n);
/// Byte x of row n of M rows of K bytes.
using Address = std::int64_t (*)(std::int64_t n, std::int64_t x, std::int64_t m, std::int64_t k,
                                 std::int64_t element);

std::int64_t p32(std::int64_t n) {
  return n / 32 * 32 + 4 * (n % 32 % 8) + n % 32 / 8;
}
std::int64_t p16(std::int64_t n) {
  return n / 16 * 16 + 2 * (n % 16 % 8) + n % 16 / 8;
}
HalfRow gate_then_up(std::int64_t n, std::int64_t rows) {
  return n < rows ? HalfRow{kGate, n} : HalfRow{kUp, n - rows};
}
HalfRow up_then_gate(std::int64_t n, std::int64_t rows) {
  return n < rows ? HalfRow{kUp, n} : HalfRow{kGate, n - rows};
}
HalfRow interleaved_p32(std::int64_t n, std::int64_t /*rows*/) {
  return {p32(n) % 2 == 0 ? kUp : kGate, p32(n) / 2};
}
HalfRow up_then_gate_p16(std::int64_t n, std::int64_t rows) {
  return up_then_gate(p16(n), rows);
}
HalfRow gate_and_up_by_8(std::int64_t n, std::int64_t /*rows*/) {
  return {n % 16 < 8 ? kGate : kUp, n / 16 * 8 + n % 8};
}
HalfRow up_and_gate_by_64(std::int64_t n, std::int64_t /*rows*/) {
  return {n % 128 < 64 ? kUp : kGate, n / 128 * 64 + n % 64};
}
std::int64_t same(std::int64_t n) {
  return n;
}

std::int64_t by_rows(std::int64_t n, std::int64_t x, std::int64_t /*m*/, std::int64_t k, std::int64_t /*e*/) {
  return n * k + x;
}
std::int64_t by_k_blocks(std::int64_t n, std::int64_t x, std::int64_t m, std::int64_t /*k*/,
                         std::int64_t /*e*/) {
  return (x / 128 * m + n) * 128 + x % 128;
}
std::int64_t by_columns(std::int64_t n, std::int64_t x, std::int64_t m, std::int64_t /*k*/, std::int64_t e) {
  return (x / e * m + n) * e + x % e;
}
std::int64_t by_blocks_of_16(std::int64_t n, std::int64_t x, std::int64_t /*m*/, std::int64_t k,
                             std::int64_t e) {
  return (n / 16 * (k / e) + x / e) * 16 * e + n % 16 * e + x % e;
}
std::int64_t by_tiles(std::int64_t r, std::int64_t c, std::int64_t /*m*/, std::int64_t k,
                      std::int64_t /*e*/) {
  return (r / 128 * ((k + 3) / 4) + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
}
std::int64_t by_words(std::int64_t m, std::int64_t k, std::int64_t rows, std::int64_t /*k*/,
                      std::int64_t /*e*/) {
  const std::int64_t al = (rows + 3) / 4 * 4;
  return k / 4 * al * 4 + m * 4 + k % 4;
}
/// Row 32·b + a of each 128 at 4·a + b.
std::int64_t by_reordered_words(std::int64_t n, std::int64_t k, std::int64_t rows, std::int64_t cols,
                                std::int64_t e) {
  return by_words(n / 128 * 128 + 4 * (n % 32) + n % 128 / 32, k, rows, cols, e);
}

struct Formula {
  const char* layout;
  const char* quantize;
  std::int64_t
      inner_step;  ///< the inner size of one rank is a random multiple, or that of all before it is padded
  std::int64_t hidden_step;  ///< and the hidden size
  W13Order w13;
  W2Order w2;
  Address weights;
  W13Order w13_scales;
  W2Order w2_scales;
  Address scales;
};

constexpr Formula kFormulas[] = {
    {"triton", "", 1, 1, gate_then_up, same, by_rows, {}, {}, {}},
    {"triton", "fp8-block", 128, 8, gate_then_up, same, by_rows, gate_then_up, same, by_rows},
    {"triton", "fp8-block:ue8m0", 128, 8, gate_then_up, same, by_rows, gate_then_up, same, by_rows},
    {"triton", "fp8-tensor", 3, 3, gate_then_up, same, by_rows, {}, {}, {}},
    {"triton", "fp8-channel", 3, 3, gate_then_up, same, by_rows, gate_then_up, same, by_rows},
    {"triton", "mxfp8", 32, 32, gate_then_up, same, by_rows, gate_then_up, same, by_rows},
    {"triton-kernels", "", 1, 1, gate_then_up, same, by_columns, {}, {}, {}},
    {"vllm-cpu", "", 1, 32, gate_then_up, same, by_blocks_of_16, {}, {}, {}},
    {"cutlass", "", 8, 8, up_then_gate, same, by_rows, {}, {}, {}},
    {"cutlass", "fp8-block", 128, 16, up_then_gate, same, by_rows, up_then_gate, same, by_rows},
    {"cutlass", "fp8-tensor", 16, 16, up_then_gate, same, by_rows, {}, {}, {}},
    {"cutlass", "fp8-channel", 16, 16, up_then_gate, same, by_rows, up_then_gate, same, by_rows},
    {"cutlass", "mxfp8", 128, 32, up_then_gate, same, by_rows, up_then_gate, same, by_tiles},
    {"cutlass", "nvfp4", 128, 32, up_then_gate, same, by_rows, up_then_gate, same, by_tiles},
    {"cutlass", "mxfp4", 128, 128, up_then_gate, same, by_rows, up_then_gate, same, by_tiles},
    {"trtllm", "", 8, 64, interleaved_p32, p32, by_k_blocks, {}, {}, {}},
    {"trtllm", "fp8-tensor", 8, 32, interleaved_p32, p32, by_rows, {}, {}, {}},
    {"trtllm", "fp8-block", 8, 128, up_then_gate, same, by_rows, up_then_gate, same, by_rows},
    {"trtllm", "mxfp8", 32, 128, interleaved_p32, p32, by_rows, interleaved_p32, p32, by_tiles},
    {"trtllm", "nvfp4", 16, 128, interleaved_p32, p32, by_rows, interleaved_p32, p32, by_tiles},
    {"trtllm", "mxfp4", 32, 128, interleaved_p32, p32, by_rows, interleaved_p32, p32, by_tiles},
    {"trtllm-shuffled", "fp8-block", 8, 128, up_then_gate_p16, p16, by_k_blocks, up_then_gate, same, by_rows},
    {"deepgemm", "", 8, 8, gate_then_up, same, by_rows, {}, {}, {}},
    {"deepgemm", "fp8-block", 128, 16, gate_then_up, same, by_rows, gate_then_up, same, by_rows},
    {"deepgemm", "fp8-block:ue8m0", 128, 16, gate_then_up, same, by_rows, gate_then_up, same, by_words},
    {"deepgemm-mega", "", 8, 8, gate_and_up_by_8, same, by_rows, {}, {}, {}},
    {"deepgemm-mega", "mxfp4", 64, 128, gate_and_up_by_8, same, by_rows, gate_and_up_by_8, same,
     by_reordered_words},
    {"cute-dsl", "nvfp4", 64, 128, up_and_gate_by_64, same, by_rows, up_and_gate_by_64, same, by_tiles},
};

std::int64_t tag(std::uint32_t tensor, Plane plane, std::int64_t row, std::int64_t col) {
  return (((std::int64_t{tensor} * 4 + static_cast<std::int64_t>(plane) + 1) << 14 | row) << 14) | col;
}

/// One rank's experts of random sizes, against a formula.
class Comparison {
 public:
  Comparison(const Formula& formula, const Experts& experts, std::int64_t parts, std::int64_t part)
      : formula_(formula), experts_(experts) {
    const std::string layout = formula.layout;
    const std::int64_t rank_plan = experts.inner / parts;
    padded_ = round_up(rank_plan, layout.starts_with("trtllm") ? 128 : layout == "vllm-cpu" ? 32 : 1);
    // vLLM cuts first and pads then.
    start_ = part * (layout == "vllm-cpu" ? rank_plan : padded_);
    end_ = layout == "vllm-cpu" ? start_ + rank_plan : experts.inner;
    find_moe_layout(formula.layout).add_parameters(experts.catalog, experts.rank(parts, part), parameters_);
  }

  void run() {
    const auto& quantizer = experts_.quantizer;
    const Plane weights = quantizer ? Plane::kCodes : Plane::kValues;
    const std::int64_t packed = quantizer ? codes_per_byte(quantizer->scheme) : 1;
    for (const bool w13 : {true, false}) {
      compare(w13, weights, 1, packed, quantizer ? 1 : 2, false);
      if (!quantizer) continue;
      if (const std::int64_t bytes = block_scale_bytes(quantizer->scheme); bytes > 0) {
        // Packed scales are repeated for each row.
        const bool repeated = formula_.scales == by_words;
        compare(w13, Plane::kScales, repeated ? 1 : block_rows(quantizer->scheme),
                block_cols(quantizer->scheme), repeated ? 1 : bytes, true);
      }
      if (has_global(quantizer->scheme)) compare_scalars(w13);
    }
    if (std::string(formula_.layout) == "trtllm" && quantizer && has_global(quantizer->scheme)) {
      // a·s13, (1/b)·a·s13 and b·s2; a and b are 1 here.
      for (const bool w13 : {true, true, false}) compare_scalars(w13);
    }
    EXPECT_EQ(next_, parameters_.size());
  }

 private:
  /// Elements of the plane stand for block_rows × block_cols; no columns: for all of a row.
  void compare(bool w13, Plane plane, std::int64_t block_rows, std::int64_t block_cols, std::int64_t element,
               bool scales) {
    const Parameter& parameter = parameters_.at(next_++);
    SCOPED_TRACE(parameter.name + " " + parameter.shape.to_string());
    const Tags tags = Filled(parameter, tag).elements();
    const std::int64_t slab = static_cast<std::int64_t>(tags.size() / experts_.slots.size());
    const std::int64_t inner = padded_ / block_rows + (padded_ % block_rows > 0 ? 1 : 0);
    const std::int64_t rows = w13 ? 2 * inner : ceil_div(experts_.hidden, block_rows);
    const std::int64_t cols = block_cols == 0 ? 1 : ceil_div(w13 ? experts_.hidden : padded_, block_cols);
    const Address address = scales ? formula_.scales : formula_.weights;
    Tags expected(tags.size(), 0);
    for (std::size_t e = 0; e < experts_.slots.size(); ++e) {
      for (std::int64_t n = 0; n < rows; ++n) {
        for (std::int64_t c = 0; c < cols; ++c) {
          std::uint32_t tensor = experts_.slots[e].down;
          std::int64_t row = n;
          std::int64_t col = c;
          bool padding = false;
          if (w13) {
            const HalfRow from = (scales ? formula_.w13_scales : formula_.w13)(n, inner);
            tensor = from.half == kGate ? experts_.slots[e].gate : experts_.slots[e].up;
            row = start_ / block_rows + from.row;
            padding = row * block_rows >= end_;
          } else {
            row = (scales ? formula_.w2_scales : formula_.w2)(n);
            if (block_cols > 0) col = start_ / block_cols + c;
            padding = col * block_cols >= end_;
          }
          if (padding) continue;
          const std::int64_t at = address(n, c * element, rows, cols * element, element) / element;
          expected.at(e * static_cast<std::size_t>(slab) + static_cast<std::size_t>(at)) =
              tag(tensor, plane, row, col);
        }
      }
    }
    EXPECT_EQ(tags == expected, true);
    EXPECT_EQ(dtype_bytes(parameter.dtype), element);
    EXPECT_EQ(parameter.shape[0], static_cast<std::int64_t>(experts_.slots.size()));
  }

  void compare_scalars(bool w13) {
    const Parameter& parameter = parameters_.at(next_++);
    Tags expected;
    for (const ExpertTensors& expert : experts_.slots) {
      expected.push_back(kScalar + (w13 ? std::min(expert.gate, expert.up) : expert.down));
    }
    EXPECT_EQ(Filled(parameter, tag).elements(), expected);
    EXPECT_EQ(parameter.dtype, DType::kF32);
    EXPECT_EQ(parameter.shape, Shape{static_cast<std::int64_t>(experts_.slots.size())});
  }

  const Formula& formula_;
  const Experts& experts_;
  std::int64_t padded_ = 0;
  std::int64_t start_ = 0;
  std::int64_t end_ = 0;
  std::vector<Parameter> parameters_;
  std::size_t next_ = 0;
};

TEST(Layouts, PlaceEveryElementAsTheirFormulasSay) {
  std::mt19937 random(20);  // NOLINT: always the same
  const auto dice = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  for (const Formula& formula : kFormulas) {
    const bool pads = std::string(formula.layout).starts_with("trtllm");
    for (int round = 0; round < 12; ++round) {
      const std::int64_t parts = std::int64_t{1} << dice(0, 2);
      const std::int64_t most = std::max<std::int64_t>(2, 200 / formula.inner_step);
      // A padded inner size needs be no multiple of anything on one rank; some are left with nothing.
      const std::int64_t inner = formula.inner_step * dice(1, most) * (pads ? dice(1, 2) * parts : parts);
      const std::int64_t hidden =
          formula.hidden_step * dice(1, std::max<std::int64_t>(3, 150 / formula.hidden_step));
      const std::int64_t part = dice(0, parts - 1);
      SCOPED_TRACE(fmt::format("{} {}: inner {} / {}, part {}, hidden {}", formula.layout, formula.quantize,
                               inner, parts, part, hidden));
      const Experts experts(2, inner, hidden, formula.quantize);
      EXPECT_NO_THROW(
          find_moe_layout(formula.layout).require({inner, parts, hidden, DType::kBF16, experts.quantizer}));
      Comparison(formula, experts, parts, part).run();
      if (HasFailure()) return;
    }
  }
}

TEST(Layouts, RanksBehindThePaddedInnerSizeHoldZerosOnly) {
  // 3 × 128 of four ranks: I/T = 96 is padded to 128, so the last has nothing.
  for (const Formula& formula : kFormulas) {
    if (!std::string(formula.layout).starts_with("trtllm")) continue;
    SCOPED_TRACE(fmt::format("{} {}", formula.layout, formula.quantize));
    const Experts experts(1, 384, 128, formula.quantize);
    std::vector<Parameter> parameters;
    find_moe_layout(formula.layout).add_parameters(experts.catalog, experts.rank(4, 3), parameters);
    for (const Parameter& parameter : parameters) EXPECT_TRUE(parameter.parts.empty()) << parameter.name;
    Comparison(formula, experts, 4, 3).run();
    Comparison(formula, experts, 4, 2).run();
  }
  // Of 320 the third has half of its own, and the last block of rows ends with the matrix.
  for (const std::int64_t part : {0, 1, 2, 3}) {
    for (const Formula& formula : kFormulas) {
      if (!std::string(formula.layout).starts_with("trtllm")) continue;
      SCOPED_TRACE(fmt::format("{} {} {}", formula.layout, formula.quantize, part));
      Comparison(formula, Experts(2, 320, 128, formula.quantize), 4, part).run();
    }
  }
}

TEST(Layouts, EveryPairThatIsTakenHasAFormulaHere) {
  for (const MoeLayout* layout : moe_layouts()) {
    const auto known = [&](const std::string& quantize) {
      return std::any_of(std::begin(kFormulas), std::end(kFormulas), [&](const Formula& formula) {
        return formula.layout == layout->name() && formula.quantize == quantize;
      });
    };
    const TakenWeights taken = layout->takes();
    EXPECT_EQ(known(""), taken.values) << layout->name();
    for (const std::string& quantize : quantizer_names()) {
      if (quantize.find(':') != std::string::npos) continue;
      const QuantScheme scheme = parse_quantizer(quantize).scheme;
      const bool takes = std::find(taken.schemes.begin(), taken.schemes.end(), scheme) != taken.schemes.end();
      EXPECT_EQ(known(quantize), takes) << layout->name() << " " << quantize;
    }
  }
}

TEST(Layouts, ShapesAndTypes) {
  const auto listed = [](const char* layout, const char* quantize) {
    const Experts experts(4, 384, 640, quantize);
    std::vector<Parameter> parameters;
    find_moe_layout(layout).add_parameters(experts.catalog, experts.rank(1, 0), parameters);
    std::string text;
    for (const Parameter& parameter : parameters) {
      text +=
          fmt::format("{} {} {}\n", parameter.name, dtype_name(parameter.dtype), parameter.shape.to_string());
    }
    return text;
  };
  EXPECT_EQ(listed("triton", "fp8-block"),
            "experts.w13_weight float8_e4m3fn [4, 768, 640]\n"
            "experts.w13_weight_scale_inv float32 [4, 6, 5]\n"
            "experts.w2_weight float8_e4m3fn [4, 640, 384]\n"
            "experts.w2_weight_scale_inv float32 [4, 5, 3]\n");
  EXPECT_EQ(listed("triton", "fp8-channel"),
            "experts.w13_weight float8_e4m3fn [4, 768, 640]\n"
            "experts.w13_weight_scale float32 [4, 768, 1]\n"
            "experts.w2_weight float8_e4m3fn [4, 640, 384]\n"
            "experts.w2_weight_scale float32 [4, 640, 1]\n");
  EXPECT_EQ(listed("cutlass", "fp8-tensor"),
            "experts.w13_weight float8_e4m3fn [4, 768, 640]\n"
            "experts.w13_weight_scale float32 [4]\n"
            "experts.w2_weight float8_e4m3fn [4, 640, 384]\n"
            "experts.w2_weight_scale float32 [4]\n");
  EXPECT_EQ(listed("cutlass", "nvfp4"),
            "experts.w13_weight e2m1x2 [4, 768, 320]\n"
            "experts.w13_weight_scale float8_e4m3fn [4, 768, 40]\n"
            "experts.w13_weight_scale_2 float32 [4]\n"
            "experts.w2_weight e2m1x2 [4, 640, 192]\n"
            "experts.w2_weight_scale float8_e4m3fn [4, 640, 24]\n"
            "experts.w2_weight_scale_2 float32 [4]\n");
  EXPECT_EQ(listed("deepgemm", "fp8-block:ue8m0"),
            "experts.w13_weight float8_e4m3fn [4, 768, 640]\n"
            "experts.w13_weight_scale_inv float8_e8m0fnu [4, 2, 768, 4]\n"
            "experts.w2_weight float8_e4m3fn [4, 640, 384]\n"
            "experts.w2_weight_scale_inv float8_e8m0fnu [4, 1, 640, 4]\n");
  EXPECT_EQ(listed("deepgemm-mega", "mxfp4"),
            "experts.w13_weight e2m1x2 [4, 768, 320]\n"
            "experts.w13_weight_scale float8_e8m0fnu [4, 5, 768, 4]\n"
            "experts.w2_weight e2m1x2 [4, 640, 192]\n"
            "experts.w2_weight_scale float8_e8m0fnu [4, 3, 640, 4]\n");
  EXPECT_EQ(listed("trtllm-shuffled", "fp8-block"),
            "experts.w13_weight float8_e4m3fn [4, 5, 768, 128]\n"
            "experts.w13_weight_scale_inv float32 [4, 6, 5]\n"
            "experts.w2_weight float8_e4m3fn [4, 3, 640, 128]\n"
            "experts.w2_weight_scale_inv float32 [4, 5, 3]\n");
}

/// The same experts as a checkpoint that is quantised already keeps them.
struct StoredExperts {
  StoredExperts(std::int64_t inner, std::int64_t hidden, Quantizer quantizer)
      : quantization(catalog, quantizer, Quantization::Origin::kStored) {
    const Quantization computed(catalog, quantizer);
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
      const auto of = [&](Plane plane) {
        const Box box = computed.form(plane, cols).of({0, rows, 0, cols});
        return Shape{box.rows, box.cols};
      };
      const std::uint32_t weight =
          catalog.add(name + ".weight", computed.dtype(Plane::kCodes), of(Plane::kCodes));
      const std::string prefix = name + ".weight";
      if (computed.has_scales()) {
        catalog.add(prefix + computed.scales_suffix(), computed.dtype(Plane::kScales), of(Plane::kScales));
      }
      if (computed.has_global()) catalog.add(prefix + computed.global_suffix(), DType::kF32, {});
      return weight;
    };
    slots.push_back({add("gate", inner, hidden), add("up", inner, hidden), add("down", hidden, inner)});
  }

  Catalog catalog;
  Quantization quantization;
  std::vector<ExpertTensors> slots;
};

TEST(Layouts, PlanesOfCheckpointsLieWhereComputedOnesDo) {
  constexpr std::int64_t kInner = 640;
  constexpr std::int64_t kHidden = 256;
  for (const Formula& formula : kFormulas) {
    if (*formula.quantize == '\0' || formula.scales == by_words) continue;
    SCOPED_TRACE(fmt::format("{} {}", formula.layout, formula.quantize));
    const Experts experts(1, kInner, kHidden, formula.quantize);
    const StoredExperts stored(kInner, kHidden, *experts.quantizer);
    const MoeLayout& layout = find_moe_layout(formula.layout);
    std::vector<Parameter> computed;
    layout.add_parameters(experts.catalog, experts.rank(5, 3), computed);
    std::vector<Parameter> read;
    layout.add_parameters(stored.catalog, {"experts", stored.slots, 5, 3, &stored.quantization}, read);
    // What trtllm multiplies with it makes of stored scales itself.
    while (!computed.back().name.ends_with("_scale") && !computed.back().name.ends_with("_scale_2") &&
           !computed.back().scalars.empty()) {
      computed.pop_back();
    }
    ASSERT_EQ(read.size(), computed.size());
    for (std::size_t number = 0; number < read.size(); ++number) {
      SCOPED_TRACE(read[number].name);
      EXPECT_EQ(read[number].name, computed[number].name);
      const bool of_tensors = !computed[number].scalars.empty();
      const bool w13 = number < read.size() / 2;
      // One for each stored tensor.
      EXPECT_EQ(read[number].shape, of_tensors && w13 ? Shape{2} : computed[number].shape);
      EXPECT_EQ(read[number].dtype, computed[number].dtype);
      EXPECT_EQ(read[number].padding.size(), computed[number].padding.size());
      EXPECT_TRUE(read[number].scalars.empty());
      if (!computed[number].scalars.empty()) {
        const ExpertTensors& expert = stored.slots[0];
        const std::vector<std::uint32_t> weights =
            w13 ? std::vector{expert.gate, expert.up} : std::vector{expert.down};
        ASSERT_EQ(read[number].parts.size(), weights.size());
        for (std::size_t part = 0; part < weights.size(); ++part) {
          EXPECT_EQ(read[number].parts[part].tensor, stored.quantization.stored_global(weights[part]));
        }
        continue;
      }
      ASSERT_EQ(read[number].parts.size(), computed[number].parts.size());
      for (std::size_t part = 0; part < read[number].parts.size(); ++part) {
        const Part& a = read[number].parts[part];
        const Part& b = computed[number].parts[part];
        EXPECT_EQ(a.form, PlaneForm{});
        EXPECT_EQ(a.box, b.form.of(b.box));
        EXPECT_EQ(a.offset, b.offset);
        EXPECT_EQ(a.pitch, b.pitch);
        EXPECT_EQ(a.layout, b.layout);
      }
    }
  }
}

TEST(Layouts, ScalesOfCheckpointsThatDoNotFitAreNamed) {
  const auto message = [](DType dtype, const Shape& shape, const std::string& suffix) -> std::string {
    Catalog catalog;
    std::vector<ExpertTensors> slots{{catalog.add("gate.weight", DType::kF8E4M3, {256, 128}),
                                      catalog.add("up.weight", DType::kF8E4M3, {256, 128}),
                                      catalog.add("down.weight", DType::kF8E4M3, {128, 256})}};
    catalog.add("gate.weight" + suffix, dtype, shape);
    catalog.add("up.weight" + suffix, dtype, shape);
    catalog.add("down.weight" + suffix, dtype, shape);
    const char* const quantize = suffix == "_scale" ? "fp8-tensor" : "fp8-block";
    const Quantization stored(catalog, parse_quantizer(quantize), Quantization::Origin::kStored);
    std::vector<Parameter> parameters;
    try {
      find_moe_layout("triton").add_parameters(catalog, {"experts", slots, 1, 0, &stored}, parameters);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  const auto expect = [&](const std::string& said, std::initializer_list<const char*> words) {
    for (const char* word : words) EXPECT_NE(said.find(word), std::string::npos) << word << ": " << said;
  };
  expect(message(DType::kBF16, {2, 1}, "_scale_inv"), {"gate.weight_scale_inv", "bfloat16", "float32"});
  expect(message(DType::kF32, {3, 1}, "_scale_inv"), {"gate.weight_scale_inv", "[3, 1]", "[2, 1]"});
  expect(message(DType::kF32, {2, 1}, "_scales"), {"gate.weight_scale_inv"});
  expect(message(DType::kF32, {2}, "_scale"), {"gate.weight_scale", "[2]", "one float32"});
  EXPECT_EQ(message(DType::kF32, {1}, "_scale"), "no error");
}

TEST(QuantizedStacks, StoredPlanesLieWhereComputedOnesDo) {
  Catalog catalog;
  const auto add = [&](const std::string& name, std::int64_t rows) {
    const std::uint32_t weight = catalog.add(name, DType::kU8, {rows, 32});
    catalog.add(name + "_scale", DType::kF8E4M3, {rows, 4});
    catalog.add(name + "_scale_2", DType::kF32, {1});
    return weight;
  };
  const std::uint32_t query = add("q", 8);
  const std::uint32_t key = add("k", 4);
  const Quantization stored(catalog, parse_quantizer("nvfp4"), Quantization::Origin::kStored);
  // Columns 16 to 48 of 64 values are bytes 8 to 24 of their codes.
  const std::vector<TensorBox> boxes{{query, {2, 4, 8, 16}}, {key, {0, 2, 8, 16}}};
  const std::vector<Parameter> planes =
      quantized_stack(catalog, stack(catalog, "qk", {6, 16}, boxes), stored, "--inference");
  ASSERT_EQ(planes.size(), 3u);
  const auto expect = [&](std::size_t number, const std::string& name, const Shape& shape,
                          const std::vector<std::pair<std::uint32_t, Box>>& parts) {
    EXPECT_EQ(planes[number].name, name);
    EXPECT_EQ(planes[number].shape, shape);
    ASSERT_EQ(planes[number].parts.size(), parts.size());
    for (std::size_t part = 0; part < parts.size(); ++part) {
      EXPECT_EQ(planes[number].parts[part].tensor, parts[part].first);
      EXPECT_EQ(planes[number].parts[part].box, parts[part].second);
    }
  };
  expect(0, "qk", {6, 16}, {{query, {2, 4, 8, 16}}, {key, {0, 2, 8, 16}}});
  // In tiles.
  expect(1, "qk_scale", {128, 4}, {{query + 1, {2, 4, 1, 2}}, {key + 1, {0, 2, 1, 2}}});
  expect(2, "qk_scale_2", {2}, {{query + 2, {0, 1, 0, 1}}, {key + 2, {0, 1, 0, 1}}});
}

// What is refused.

struct Refusal {
  const char* layout;
  const char* quantize;
  std::int64_t inner;
  std::int64_t parts;
  std::int64_t hidden;
  std::vector<const char*> words;
  DType dtype = DType::kBF16;
};

TEST(Layouts, SizesThatDoNotFitAreNamedAndWhatWouldDo) {
  const Refusal refusals[] = {
      {"triton",
       "fp8-block",
       768,
       4,
       512,
       {"triton", "fp8-block", "192 = 768/4", "128", "tp/ep may be 1, 2, 3, 6"}},
      {"triton", "fp8-block", 1408, 2, 512, {"704 = 1408/2", "tp/ep may be 1, 11"}},
      {"triton", "fp8-block", 2880, 1, 512, {"2880 = 2880/1", "no tp/ep"}},
      {"triton", "mxfp8", 96, 2, 512, {"48 = 96/2", "32", "tp/ep may be 1, 3"}},
      {"triton", "mxfp8", 96, 1, 80, {"hidden size 80", "32"}},
      {"cutlass", "", 24, 2, 64, {"cutlass", "12 = 24/2", "of 8", "tp/ep may be 1, 3"}},
      {"cutlass", "", 24, 1, 60, {"hidden size 60", "of 8"}},
      {"cutlass", "fp8-tensor", 48, 2, 64, {"24 = 48/2", "of 16", "tp/ep may be 1, 3"}},
      {"cutlass", "fp8-channel", 48, 1, 72, {"hidden size 72", "of 16"}},
      {"cutlass", "fp8-block", 512, 8, 64, {"64 = 512/8", "of 128", "tp/ep may be 1, 2, 4"}},
      {"cutlass", "mxfp8", 512, 8, 64, {"64 = 512/8", "of 128", "tp/ep may be 1, 2, 4"}},
      {"cutlass", "mxfp8", 512, 1, 48, {"hidden size 48", "of 32"}},
      {"cutlass", "nvfp4", 768, 4, 64, {"192 = 768/4", "of 128", "tiles", "tp/ep may be 1, 2, 3, 6"}},
      {"cutlass", "nvfp4", 768, 1, 48, {"hidden size 48", "of 32"}},
      {"cutlass", "mxfp4", 768, 1, 64, {"hidden size 64", "of 128"}},
      {"trtllm", "", 96, 1, 96, {"trtllm", "hidden size 96", "of 64"}},
      {"trtllm", "", 96, 1, 128, {"bfloat16", "float32"}, DType::kF32},
      {"trtllm", "fp8-tensor", 96, 1, 48, {"hidden size 48", "of 32"}},
      {"trtllm", "fp8-block", 96, 1, 64, {"hidden size 64", "of 128"}},
      {"trtllm", "mxfp8", 96, 1, 64, {"hidden size 64", "of 128"}},
      {"trtllm", "mxfp8", 80, 1, 128, {"inner size 80", "of 32"}},
      {"trtllm", "nvfp4", 96, 1, 192, {"hidden size 192", "of 128"}},
      {"trtllm", "nvfp4", 72, 1, 128, {"inner size 72", "of 16"}},
      {"trtllm", "mxfp4", 96, 1, 2880, {"hidden size 2880", "of 128"}},
      {"trtllm-shuffled", "fp8-block", 96, 1, 64, {"trtllm-shuffled", "hidden size 64", "of 128"}},
      {"deepgemm", "fp8-block", 512, 8, 64, {"64 = 512/8", "of 128", "tp/ep may be 1, 2, 4"}},
      {"deepgemm", "fp8-block:ue8m0", 512, 1, 40, {"fp8-block:ue8m0", "hidden size 40", "of 16"}},
      {"deepgemm", "", 24, 2, 64, {"12 = 24/2", "of 8"}},
      {"deepgemm-mega", "", 24, 2, 64, {"12 = 24/2", "of 8", "turns", "tp/ep may be 1, 3"}},
      {"deepgemm-mega", "mxfp4", 96, 1, 128, {"96 = 96/1", "of 64", "no tp/ep"}},
      {"deepgemm-mega", "mxfp4", 128, 1, 64, {"hidden size 64", "of 128"}},
      {"vllm-cpu", "", 48, 1, 80, {"hidden size 80", "of 32"}},
      {"cute-dsl", "nvfp4", 192, 2, 128, {"96 = 192/2", "of 64", "tp/ep may be 1, 3"}},
      {"cute-dsl", "nvfp4", 192, 1, 64, {"hidden size 64", "of 128"}},
      // Kernels and quantisers that do not go together.
      {"triton",
       "nvfp4",
       128,
       1,
       128,
       {"triton", "fp8-block, fp8-tensor, fp8-channel, mxfp8 or none", "nvfp4", "cutlass, trtllm, cute-dsl"}},
      {"triton", "mxfp4:ocp", 128, 1, 128, {"mxfp4:ocp", "cutlass, trtllm, deepgemm-mega"}},
      {"triton-kernels",
       "fp8-block",
       128,
       1,
       128,
       {"triton-kernels", "weights as in the model", "fp8-block",
        "triton, cutlass, trtllm, trtllm-shuffled, deepgemm"}},
      {"trtllm", "fp8-channel", 128, 1, 128, {"trtllm", "fp8-channel", "triton, cutlass"}},
      {"trtllm-shuffled",
       "",
       128,
       1,
       128,
       {"trtllm-shuffled", "--quantize fp8-block", "triton, triton-kernels, cutlass, trtllm, deepgemm"}},
      {"trtllm-shuffled", "mxfp8", 128, 1, 128, {"mxfp8", "triton, cutlass, trtllm"}},
      {"deepgemm", "mxfp8", 128, 1, 128, {"deepgemm", "fp8-block or none", "mxfp8"}},
      {"deepgemm-mega", "fp8-block", 128, 1, 128, {"deepgemm-mega", "mxfp4 or none", "fp8-block"}},
      {"cute-dsl", "", 128, 1, 128, {"cute-dsl", "--quantize nvfp4"}},
      {"vllm-cpu", "fp8-block", 128, 1, 128, {"vllm-cpu", "weights as in the model", "fp8-block"}},
      {"cute-dsl", "fp8-block", 128, 1, 128, {"cute-dsl", "--quantize nvfp4", "fp8-block"}},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(fmt::format("{} {} {}/{} {}", refusal.layout, refusal.quantize, refusal.inner, refusal.parts,
                             refusal.hidden));
    try {
      find_moe_layout(refusal.layout)
          .require(
              {refusal.inner, refusal.parts, refusal.hidden, refusal.dtype, quantizer_of(refusal.quantize)});
      ADD_FAILURE() << "was taken";
    } catch (const UsageError& error) {
      const std::string said = error.what();
      EXPECT_EQ(said.find('\n'), std::string::npos);
      EXPECT_TRUE(said.starts_with("--moe-layout")) << said;
      for (const char* word : refusal.words)
        EXPECT_NE(said.find(word), std::string::npos) << word << ": " << said;
    }
  }
}

TEST(Layouts, StoredScalesAreNotRepeatedForEachRow) {
  const StoredExperts stored(256, 128, parse_quantizer("fp8-block:ue8m0"));
  std::vector<Parameter> parameters;
  EXPECT_THROW(
      find_moe_layout("deepgemm")
          .add_parameters(stored.catalog, {"experts", stored.slots, 1, 0, &stored.quantization}, parameters),
      UsageError);
}

TEST(Layouts, AnUnknownOneIsToldOfAll) {
  try {
    find_moe_layout("marble");
    ADD_FAILURE() << "was found";
  } catch (const UsageError& error) {
    for (const MoeLayout* layout : moe_layouts()) {
      EXPECT_NE(std::string(error.what()).find(layout->name()), std::string::npos) << error.what();
    }
  }
}

}  // namespace

}  // namespace weightcast
