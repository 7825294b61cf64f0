#include <gtest/gtest.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/units.hpp"
#include "emulated_update.hpp"
#include "naive_model.hpp"
#include "plan/plan.hpp"

namespace weightcast {

namespace {

struct Case {
  naive::Model model;
  Topology topology;
  Limits limits;

  std::string to_string() const {
    const EngineLayout& e = topology.engine;
    return fmt::format(
        "{} trainers {} colocate {} split {} {} {} pp {} ({}) replicas {} experts {} {} quantize {} "
        "at {} "
        "bucket {} buffers {} fan-out {}",
        model.config_text(), topology.trainers, topology.colocate, static_cast<int>(topology.source_split),
        topology.trainer_layout ? topology.trainer_layout->to_string() : "", e.cut_text(), e.pp,
        fmt::join(e.stage_layers, ","), e.replicas, e.experts.fingerprint(), e.moe_layout,
        e.quantizer ? quantizer_name(*e.quantizer) : "none",
        limits.quantize_at == QuantizeAt::kSource ? "source" : "destination", limits.bucket_bytes,
        limits.buffers, limits.fan_out == FanOut::kAll ? "all" : "needed");
  }
};

/// Random models and layouts that fit each other.
class Cases {
 public:
  explicit Cases(std::uint64_t seed) : random_(seed) {}

  Case next() {
    Case c;
    EngineLayout& engine = c.topology.engine;
    engine.tp = pick({1, 2, 3, 4, 6, 8});
    engine.ep = divisor(engine.tp);
    if (chance(2)) engine.attention_dp = divisor(engine.tp);
    engine.pp = pick({1, 1, 1, 2, 3});
    engine.replicas = pick({1, 1, 2, 3});
    c.topology.colocate = chance(3);
    c.topology.trainers = c.topology.colocate ? engine.ranks() : between(1, 5);
    c.model = model(engine);
    // The kernels of cutlass load 16 bytes at a time.
    const std::int64_t unit = 16 / dtype_bytes(c.model.dtype);
    const bool aligned = c.model.hidden % unit == 0 && c.model.expert_inner / engine.expert_tp() % unit == 0;
    std::vector<std::string> moe_layouts{"triton", "triton-kernels"};
    if (!c.model.moe || aligned) moe_layouts.emplace_back("cutlass");
    if (!c.model.moe || (c.model.hidden % 64 == 0 && c.model.dtype == DType::kBF16)) {
      moe_layouts.emplace_back("trtllm");
    }
    if (!c.model.moe || c.model.hidden % 32 == 0) {
      moe_layouts.emplace_back("vllm-cpu");
    }
    engine.moe_layout = one_of(moe_layouts);
    if (chance(2)) engine.engine = Engine::kVllm;
    c.limits = limits();
    if (chance(3)) engine.stage_layers = uneven(c.model.layers, engine.pp);
    if (c.model.moe && chance(3)) engine.experts = placement(c.model, engine.ep);
    return c;
  }

  /// Models whose blocks no rank and no trainer cuts.
  Case next_quantized() {
    Case c;
    EngineLayout& engine = c.topology.engine;
    engine.tp = pick({1, 2, 2, 3, 4});
    engine.ep = divisor(engine.tp);
    if (chance(3)) engine.attention_dp = divisor(engine.tp);
    engine.pp = pick({1, 1, 1, 2});
    engine.replicas = pick({1, 1, 2});
    c.model.moe = chance(2);
    engine.quantizer = quantizer(c.model.moe, engine);
    const QuantScheme scheme = engine.quantizer->scheme;
    quantizable_model(engine, c.model);
    if (chance(2)) engine.activations = {0.3f, 0.7f};
    if (c.model.moe && chance(2)) engine.experts = placement(c.model, engine.ep);
    c.limits = limits();
    c.limits.quantize_at = chance(2) ? QuantizeAt::kSource : QuantizeAt::kDestination;

    c.topology.colocate = chance(3);
    c.topology.trainers = c.topology.colocate ? engine.ranks() : between(1, 5);
    if (chance(2)) c.topology.trainer_layout = trainer_layout(c.model, scheme);
    if (c.topology.trainer_layout && c.topology.trainer_layout->ranks() == engine.ranks()) {
      c.topology.trainers = engine.ranks();
    } else if (c.topology.trainer_layout) {
      c.topology.colocate = false;
      c.topology.trainers = c.topology.trainer_layout->ranks();
    } else if (chance(3) && c.model.moe) {
      c.topology.source_split = SourceSplit::kExpert;
    } else if (chance(3) && scheme != QuantScheme::kFp8Block) {
      c.topology.source_split = SourceSplit::kRow;
    }
    return c;
  }

 private:
  /// Layers of every stage, of which some may have none.
  std::vector<std::int64_t> uneven(std::int64_t layers, std::int64_t stages) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(stages));
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      ++counts[static_cast<std::size_t>(between(0, stages - 1))];
    }
    return counts;
  }

  /// Experts in any order, now and then with some of them in several slots.
  ExpertPlacement placement(const naive::Model& model, std::int64_t ep) {
    ExpertPlacement placement{between(1, 9), {}};
    const std::int64_t more = chance(2) ? 0 : ep * between(1, 2);
    for (std::int64_t layer = 0; layer < model.layers; ++layer) {
      std::vector<std::int64_t>& slots = placement.experts_of_slots.emplace_back();
      for (std::int64_t slot = 0; slot < model.experts + more; ++slot) {
        slots.push_back(slot < model.experts ? slot : between(0, model.experts - 1));
      }
      std::shuffle(slots.begin(), slots.end(), random_);
    }
    return placement;
  }

  Limits limits() {
    Limits limits;
    limits.bucket_bytes =
        Limits::kLeastBucketBytes + (chance(2) ? 0 : between(1, chance(3) ? 1'500'000 : 200'000));
    limits.buffers = between(1, 4);
    limits.fan_out = chance(4) ? FanOut::kAll : FanOut::kNeeded;
    return limits;
  }

  /// Any for a dense model; for experts one that the kernels of a layout take, which is chosen, too.
  Quantizer quantizer(bool moe, EngineLayout& engine) {
    std::vector<std::string> names = quantizer_names();
    if (moe) {
      const naive::Taken taken = one_of(naive::taken_pairs());
      engine.moe_layout = taken.moe_layout;
      std::erase_if(names, [&](const auto& name) { return parse_quantizer(name).scheme != taken.scheme; });
    }
    return parse_quantizer(one_of(names));
  }

  /// Sizes are products of tp and of what a block has in a direction in which ranks cut it; the others are
  /// ragged where kernels allow it. Twice that for trainers who cut it again.
  void quantizable_model(const EngineLayout& engine, naive::Model& model) {
    const naive::QuantFormat format = naive::format_of(engine.quantizer->scheme);
    const bool blocks = format.block_rows == 128;
    // A rank's rows of q, k, v, gate and up are whole blocks, and its columns of o_proj and down_proj, too.
    const std::int64_t unit = blocks ? 128 : format.block_cols == 0 ? pick({2, 6, 20}) : format.block_cols;
    // Now and then tensors that several buckets and trainers share.
    const std::int64_t most = blocks ? 2 : chance(3) ? 16 : 4;
    model.hidden = blocks ? between(1, 300) : unit * between(1, 2 * most);
    model.layers = engine.pp * (blocks ? 1 : between(1, 2));
    model.heads = engine.tp * between(1, 2);
    model.kv_heads = kv_heads(engine.tp / engine.attention_dp, model.heads);
    model.head_dim = unit;
    model.inner = engine.tp * unit * between(1, most);
    model.vocabulary = 64 * (engine.tp % 3 == 0 ? 3 : engine.tp) - between(0, 63);
    model.experts = engine.ep * between(1, 3);
    model.expert_inner = engine.expert_tp() * unit * between(1, most);
    model.sparse_step = between(1, 2);
    model.tied = chance(3);
    model.bias = chance(3);
    if (!model.moe || engine.moe_layout == "triton") return;
    // Loads of 16 bytes, or tiles of 128 rows; trtllm pads what each rank has of an expert.
    const bool padded = engine.moe_layout == "trtllm";
    const bool tiles = format.scale_bytes == 1;
    model.hidden =
        round_up(model.hidden, padded || engine.quantizer->scheme == QuantScheme::kMxfp4 ? 128 : 32);
    const std::int64_t rank_plan = padded
                                       ? (blocks ? 64 * between(1, 5) : unit * between(1, 12))
                                       : round_up(model.expert_inner / engine.expert_tp(), tiles ? 128 : 32);
    model.expert_inner = engine.expert_tp() * rank_plan;
    model.experts = engine.ep * between(1, padded || tiles ? 1 : 2);
  }

  /// Of trainers who hold whole blocks.
  std::optional<TrainerLayout> trainer_layout(const naive::Model& model, QuantScheme scheme) {
    const naive::QuantFormat format = naive::format_of(scheme);
    const auto whole = [&](std::int64_t rows, std::int64_t cols, std::int64_t parts) {
      const bool cut = parts > 1;
      const bool rows_are_whole = format.block_rows == 0 || rows % (parts * format.block_rows) == 0;
      const bool cols_are_whole = format.block_cols == 0
                                      ? scheme == QuantScheme::kFp8Tensor
                                      : cols % (parts * std::max<std::int64_t>(2, format.block_cols)) == 0;
      return !cut || (rows_are_whole && cols_are_whole && rows % parts == 0 && cols % parts == 0);
    };
    TrainerLayout layout;
    layout.tp = pick({1, 2, 4});
    layout.etp = pick({1, 2});
    layout.ep = divisor(model.experts);
    // Rows are cut of gate and up, columns of down; of q, k and v by whole groups of heads.
    if (model.kv_heads % layout.tp != 0 || !whole(model.head_dim, model.heads * model.head_dim, 1) ||
        !whole(model.kv_heads * model.head_dim, model.heads * model.head_dim, layout.tp) ||
        !whole(model.inner, model.inner, layout.tp)) {
      layout.tp = 1;
    }
    if (!whole(model.expert_inner, model.expert_inner, layout.etp)) layout.etp = 1;
    if (!model.moe) layout.ep = layout.etp = 1;
    const std::int64_t stage = std::lcm(layout.tp, layout.etp * layout.ep);
    if (stage > 8) return std::nullopt;
    layout.dp = stage / layout.tp;
    layout.edp = stage / (layout.etp * layout.ep);
    layout.pp = divisor(model.layers);
    return layout;
  }

  naive::Model model(const EngineLayout& engine) {
    naive::Model model;
    // Now and then rows that are larger than a bucket, or tensors that travel in messages of their own.
    const bool wide = chance(8);
    const bool large = !wide && chance(8);
    model.moe = !wide && chance(2);
    model.hidden = wide ? between(30'000, 45'000) : large ? between(500, 1'200) : between(3, 120);
    model.layers = engine.pp * (wide ? 1 : between(1, 2));
    model.heads = engine.tp * between(1, 2) * (chance(3) ? 2 : 1);
    model.kv_heads = kv_heads(engine.tp / engine.attention_dp, model.heads);
    model.head_dim = between(1, wide ? 2 : 9);
    // The padded vocabulary is a multiple of 64 and of tp.
    const std::int64_t units = engine.tp % 3 == 0 ? 3 * between(1, 2) : between(1, 6);
    model.vocabulary = wide ? 64 * units - 63 : 64 * units - between(0, 63);
    model.inner = engine.tp * between(1, wide ? 1 : 9);
    model.experts = engine.ep * between(1, 4);
    model.expert_inner = engine.expert_tp() * between(1, 12);
    if (model.moe && chance(2)) {
      // Aligned as cutlass wants it, for elements of any size.
      model.hidden = round_up(model.hidden, 8);
      model.expert_inner = engine.expert_tp() * 8 * between(1, 3);
    }
    model.sparse_step = between(1, 2);
    for (std::int64_t layer = 0; layer < model.layers; ++layer) {
      if (chance(4)) model.mlp_only_layers.push_back(layer);
    }
    model.tied = chance(3);
    model.bias = chance(3);
    if (model.moe && chance(3)) {
      // As trtllm wants it; now and then with more than one block of padding, or none.
      model.hidden = 64 * between(1, 3);
      model.expert_inner = engine.expert_tp() * (chance(2) ? 128 : between(1, 200));
      model.experts = engine.ep * between(1, 2);
      model.dtype = DType::kBF16;
      return model;
    }
    model.dtype = chance(3) ? DType::kF32 : chance(2) ? DType::kF16 : DType::kBF16;
    return model;
  }

  /// Divides tp or is a multiple of it, and divides the heads.
  std::int64_t kv_heads(std::int64_t tp, std::int64_t heads) {
    std::vector<std::int64_t> choices;
    for (std::int64_t kv = 1; kv <= heads; ++kv) {
      if (heads % kv == 0 && (tp % kv == 0 || kv % tp == 0)) choices.push_back(kv);
    }
    return pick(choices);
  }

  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool chance(std::int64_t one_in) { return between(1, one_in) == 1; }
  template <typename Choice>
  Choice one_of(const std::vector<Choice>& choices) {
    return choices[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }
  std::int64_t pick(const std::vector<std::int64_t>& choices) { return one_of(choices); }
  std::int64_t divisor(std::int64_t n) {
    std::vector<std::int64_t> divisors;
    for (std::int64_t d = 1; d <= n; ++d) {
      if (n % d == 0) divisors.push_back(d);
    }
    return pick(divisors);
  }

  std::mt19937_64 random_;
};

/// A rank's place, said without the product's arithmetic.
EngineRank place_of(const EngineLayout& engine, std::int64_t rank) {
  return {rank / (engine.pp * engine.tp), rank / engine.tp % engine.pp, rank % engine.tp};
}

/// No block has a part in two segments, and so in two buckets or from two trainers: a segment begins and ends
/// where blocks do, or with the tensor. What receivers quantise has all that its scales follow from.
void expect_whole_blocks(const Plan& plan, const Catalog& catalog, const naive::Quantized& quantized) {
  for (const Segment& segment : plan.segments) {
    const auto found = quantized.find(catalog[segment.tensor].name);
    if (found == quantized.end()) continue;
    const naive::QuantizedTensor& tensor = found->second;
    const bool channels = tensor.format.block_cols == tensor.cols && !tensor.format.global;
    const bool one_scale = tensor.format.scale_bytes == 0;
    const std::int64_t rows = one_scale ? 1 : tensor.format.block_rows;
    // A row's scale goes with each part of it that some rank needs.
    const std::int64_t cols = one_scale || channels ? 1 : tensor.format.block_cols;
    const auto ends = [](std::int64_t at, std::int64_t unit, std::int64_t total) {
      return at % unit == 0 || at == total;
    };
    const Box& box = segment.box;
    EXPECT_TRUE(box.row % rows == 0 && ends(box.row + box.rows, rows, tensor.rows) && box.col % cols == 0 &&
                ends(box.col + box.cols, cols, tensor.cols))
        << found->first << " " << box.to_string();
    const bool quantized_there = std::holds_alternative<ValuesForm>(plan.wire[segment.tensor].kind);
    EXPECT_TRUE(!channels || !quantized_there || box.cols == tensor.cols)
        << found->first << " " << box.to_string();
  }
}

/// Runs the update of a case; every byte of every rank must be the naive model's.
void run(const Case& c, const naive::Weights& weights, const naive::Quantized& quantized) try {
  const auto family = c.model.family();
  ASSERT_EQ(family->catalog().size(), naive::tensors(c.model).size());
  const Plan plan = make_plan(*family, c.topology, c.limits);
  expect_whole_blocks(plan, family->catalog(), quantized);
  const std::vector<EmulatedRank> ranks = emulate_update(plan, *family, weights, quantized);
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    SCOPED_TRACE(fmt::format("rank {}", r));
    const auto rank = c.topology.inference_rank(static_cast<std::int64_t>(r));
    if (!rank) {
      EXPECT_TRUE(ranks[r].parameters.empty());
      continue;
    }
    const EngineLayout& engine = c.topology.engine;
    expect_parameters(ranks[r],
                      naive::parameters(c.model, engine, place_of(engine, *rank), weights, quantized));
  }
} catch (const Error& error) {
  // Said here, where it is known of which case.
  ADD_FAILURE() << error.what();
}

/// Every tenth of the cases is a test of its own, so that they run side by side.
class AnyLayout : public ::testing::TestWithParam<int> {};

TEST_P(AnyLayout, EveryByteIsWhereTheEngineLooks) {
  constexpr int kCases = 15;
  Cases cases(static_cast<std::uint64_t>(GetParam()));
  for (int i = 0; i < kCases && !HasFailure(); ++i) {
    const Case c = cases.next();
    SCOPED_TRACE(c.to_string());
    run(c, naive::random_weights(c.model, static_cast<std::uint64_t>(i)), {});
  }
}

TEST_P(AnyLayout, EveryCodeAndScaleIsWhereTheEngineLooks) {
  constexpr int kCases = 15;
  Cases cases(1000 + static_cast<std::uint64_t>(GetParam()));
  for (int i = 0; i < kCases && !HasFailure(); ++i) {
    const Case c = cases.next_quantized();
    SCOPED_TRACE(c.to_string());
    const naive::Weights weights = naive::random_values(c.model, static_cast<std::uint64_t>(i));
    run(c, weights, naive::quantize(c.model, *c.topology.engine.quantizer, weights));
  }
}

INSTANTIATE_TEST_SUITE_P(Random, AnyLayout, ::testing::Range(0, 10));

}  // namespace

}  // namespace weightcast
