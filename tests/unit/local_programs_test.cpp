// What a rank hands to itself without staging beside the same through staging.

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <vector>

#include "core/negated_exp.hpp"
#include "core/one_more.hpp"
#include "emulated_update.hpp"
#include "kernels/executor.hpp"
#include "naive_model.hpp"
#include "plan/held_weights.hpp"
#include "plan/sending.hpp"
#include "plan_cases.hpp"
#include "session/local_programs.hpp"

namespace weightcast {

namespace {

using Bytes = std::vector<std::byte>;

/// The parameters of a rank, which hold rubbish at first.
struct Parameters {
  explicit Parameters(const RankPlan& rank_plan) {
    for (const Parameter& parameter : rank_plan.parameters) {
      bytes.emplace_back(static_cast<std::size_t>(parameter.bytes()), std::byte{0xa5});
    }
    for (Bytes& parameter : bytes) buffers.push_back(parameter.data());
  }

  std::vector<Bytes> bytes;
  std::vector<std::byte*> buffers;
};

/// The rows of each tensor that a trainer holds.
Bytes held_bytes(const Catalog& catalog, const OwnWeights& weights, const naive::Weights& values) {
  Bytes bytes(static_cast<std::size_t>(weights.bytes));
  for (const HeldBox& box : weights.held.boxes()) {
    const Tensor& tensor = catalog[box.tensor];
    const std::int64_t row_bytes = tensor.shape.cols() * dtype_bytes(tensor.dtype);
    EXPECT_EQ(box.box.cols, tensor.shape.cols());
    EXPECT_EQ(box.pitch, row_bytes);
    std::memcpy(bytes.data() + box.offset, values.at(tensor.name).data() + box.box.row * row_bytes,
                static_cast<std::size_t>(box.box.rows * row_bytes));
  }
  return bytes;
}

/// Runs the local programs of every rank, and the programs of its share over staging for the same buckets;
/// expects the same parameters. Returns how many buckets were local.
std::size_t expect_same_parameters(const naive::Model& model, const Topology& topology,
                                   const Limits& limits) {
  const auto family = model.family();
  const Catalog& catalog = family->catalog();
  const Plan plan = make_plan(*family, topology, limits);
  const naive::Weights values = naive::random_values(model, 1);
  const auto executor = make_host_executor();
  std::vector<GlobalScale> scales;
  for (std::size_t i = 0; i < plan.scopes.size(); ++i) {
    scales.push_back(global_scale(topology.engine.quantizer.value(), 1.0f));
  }
  std::size_t count = 0;
  for (std::int64_t rank = 0; rank < topology.ranks(); ++rank) {
    const RankPlan rank_plan = make_rank_plan(plan, *family, rank);
    const Schedule schedule(plan, rank_plan, true);
    const OwnWeights own = own_weights(plan, catalog, rank);
    Bytes weights = held_bytes(catalog, own, values);
    const Sending sending = compile_sending(plan, catalog, rank, own.held);
    std::map<std::uint32_t, Move> places;
    for (std::size_t i = 0; i < sending.moves.size(); ++i) {
      places.emplace(sending.segments[i], sending.moves[i]);
    }
    const LocalPrograms local =
        compile_local(rank_plan, schedule, [&](std::uint32_t segment) { return places.at(segment); });
    EXPECT_EQ(local.move_programs.size(), rank_plan.buckets.size());
    EXPECT_EQ(local.quant_programs.size(), rank_plan.buckets.size());

    Parameters at_once(rank_plan);
    Parameters through_staging(rank_plan);
    const std::byte* const source = weights.data();
    for (std::size_t k = 0; k < rank_plan.buckets.size(); ++k) {
      const RankBucket& bucket = rank_plan.buckets[k];
      const ProgramRange moves = local.move_programs[k];
      const ProgramRange quants = local.quant_programs[k];
      EXPECT_EQ(moves.count, schedule.local(k) ? bucket.moves : 0);
      EXPECT_EQ(quants.count, schedule.local(k) ? bucket.quants : 0);
      executor->unpack(std::span(local.moves).subspan(moves.first, moves.count), source, at_once.buffers);
      executor->quantize(std::span(local.quants).subspan(quants.first, quants.count),
                         {{&source, 1}, nullptr, at_once.buffers}, scales, {});
      if (!schedule.local(k)) continue;
      ++count;
      Bytes staging(static_cast<std::size_t>(plan.buckets[bucket.bucket].bytes));
      const ProgramRange packed = sending.buckets[bucket.bucket].moves;
      executor->pack(std::span(sending.moves).subspan(packed.first, packed.count), {&source, 1},
                     staging.data());
      executor->unpack(std::span(rank_plan.moves).subspan(bucket.first_move, bucket.moves), staging.data(),
                       through_staging.buffers);
      executor->quantize(rank_plan.quant_program(bucket), {{}, staging.data(), through_staging.buffers},
                         scales, {});
    }
    for (std::size_t p = 0; p < rank_plan.parameters.size(); ++p) {
      EXPECT_TRUE(at_once.bytes[p] == through_staging.bytes[p]) << rank_plan.parameters[p].name;
    }
  }
  return count;
}

TEST(LocalPrograms, WriteWhatStagingWouldBring) {
  for (const char* engine : {"tp=2,ep=2", "tp=2,ep=1", "pp=2", "tp=4,ep=4"}) {
    SCOPED_TRACE(engine);
    Topology topology = plan_cases::topology_of(0, engine, true);
    EXPECT_GT(expect_same_parameters(plan_cases::small_moe(), topology, plan_cases::capped(64 << 10)), 0u);
    topology.source_split = SourceSplit::kExpert;
    EXPECT_GT(expect_same_parameters(plan_cases::small_moe(), topology, plan_cases::capped(100'000)), 0u);
  }
}

TEST(LocalPrograms, QuantiseWhatStagingWouldBring) {
  naive::Model model;
  model.hidden = 256;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 128;
  model.vocabulary = 300;
  model.inner = 512;
  for (const char* quantizer : {"fp8-block", "fp8-tensor", "mxfp8", "nvfp4"}) {
    SCOPED_TRACE(quantizer);
    Topology topology = plan_cases::topology_of(0, "tp=2", true);
    topology.engine.quantizer = parse_quantizer(quantizer);
    Limits limits = plan_cases::capped(100'000);
    limits.quantize_at = QuantizeAt::kDestination;
    EXPECT_GT(expect_same_parameters(model, topology, limits), 0u);
    // What travels as codes is never local.
    limits.quantize_at = QuantizeAt::kSource;
    expect_same_parameters(model, topology, limits);
  }
}

TEST(LocalPrograms, WidenWhatIsNarrowOnEitherSide) {
  Catalog catalog;
  catalog.add("state", DType::kF32, {12});  // the trainer has it in bfloat16
  catalog.set_reading(0, 0, true);
  catalog.add("router", DType::kBF16, {6, 8});  // the engine has it in float32
  const ListedFamily family(catalog, [](const Catalog& tensors, const EngineLayout&, const EngineRank&) {
    return std::vector<Parameter>{
        stack(tensors, "state", {12}, {{0, Box::whole(tensors[0].shape)}}),
        stack(tensors, "router", {6, 8}, {{1, Box::whole(tensors[1].shape)}}, {DType::kF32})};
  });
  const Plan plan = make_plan(family, plan_cases::topology_of(0, "tp=1", true), Limits());
  const RankPlan rank_plan = make_rank_plan(plan, family, 0);
  HeldBox state{0, Box::whole(catalog[0].shape), 0, 0, 24};
  state.narrow = true;
  const HeldWeights held({state, {1, Box::whole(catalog[1].shape), 0, 24, 16}}, 2);
  std::vector<std::uint16_t> source(12 + 48);
  std::iota(source.begin(), source.end(), std::uint16_t{0x3f80});
  const Sending sending = compile_sending(plan, catalog, 0, held);
  std::map<std::uint32_t, Move> places;
  for (std::size_t i = 0; i < sending.moves.size(); ++i)
    places.emplace(sending.segments[i], sending.moves[i]);
  const LocalPrograms local = compile_local(rank_plan, Schedule(plan, rank_plan, true),
                                            [&](std::uint32_t segment) { return places.at(segment); });
  EXPECT_EQ(local.moves.size(), 2u);
  Parameters parameters(rank_plan);
  make_host_executor()->unpack(local.moves, reinterpret_cast<const std::byte*>(source.data()),
                               parameters.buffers);
  std::vector<std::uint32_t> written;
  for (const Bytes& parameter : parameters.bytes) {
    std::vector<std::uint32_t> words(parameter.size() / 4);
    std::memcpy(words.data(), parameter.data(), parameter.size());
    written.insert(written.end(), words.begin(), words.end());
  }
  ASSERT_EQ(written.size(), source.size());
  for (std::size_t i = 0; i < source.size(); ++i) EXPECT_EQ(written[i], std::uint32_t{source[i]} << 16) << i;
}

TEST(LocalPrograms, WidenIntoWhatALayoutPlaces) {
  constexpr std::int64_t kRows = 8;
  MatrixLayout by_two;  // rows of two parts in turn
  by_two.step[3] = 8;
  MatrixLayout shuffled;  // rows 0, 4, 1, 5, 2, 6, 3, 7
  shuffled.bits[0] = 2;
  shuffled.step[0] = 8;
  shuffled.step[3] = 4;
  MatrixLayout turned;  // of two columns, one behind the other
  turned.step[3] = 4;
  turned.unit_bits = 2;
  turned.unit_step = 32;
  Catalog catalog;
  for (const char* name : {"in_turn", "shuffled", "turned"}) {
    catalog.add(name, DType::kF32, {kRows, 2});
    catalog.set_reading(static_cast<std::uint32_t>(catalog.size() - 1), 0, true);
  }
  const ListedFamily family(catalog, [&](const Catalog& tensors, const EngineLayout&, const EngineRank&) {
    const auto of = [&](const char* name, const MatrixLayout& layout, std::int64_t up) {
      const std::uint32_t tensor = tensors.at(name);
      std::vector<PlacedBox> boxes;
      if (up > 0) {
        for (const std::int64_t col : {0, 1})
          boxes.push_back({{tensor, {0, kRows, col, 1}}, col * up, layout, kRows, 1});
      } else {
        boxes.push_back({{tensor, Box::whole({kRows, 2})}, 0, layout, kRows, 2});
      }
      return place(tensors, name, {2, kRows}, boxes, {DType::kF32});
    };
    return std::vector<Parameter>{of("in_turn", by_two, 4), of("shuffled", shuffled, 32),
                                  of("turned", turned, 0)};
  });
  const Plan plan = make_plan(family, plan_cases::topology_of(0, "tp=1", true), Limits());
  const RankPlan rank_plan = make_rank_plan(plan, family, 0);
  std::vector<HeldBox> boxes;
  for (std::uint32_t tensor = 0; tensor < 3; ++tensor) {
    // A trainer's rows of two values lie 6 bytes apart.
    boxes.push_back({tensor, Box::whole({kRows, 2}), 0, tensor * kRows * 6, 6});
    boxes.back().narrow = true;
  }
  const HeldWeights held(boxes, 3);
  std::vector<std::uint16_t> source(3 * kRows * 3);
  std::iota(source.begin(), source.end(), std::uint16_t{0x3f80});
  const Sending sending = compile_sending(plan, catalog, 0, held);
  std::map<std::uint32_t, Move> places;
  for (std::size_t i = 0; i < sending.moves.size(); ++i)
    places.emplace(sending.segments[i], sending.moves[i]);
  const LocalPrograms local = compile_local(rank_plan, Schedule(plan, rank_plan, true),
                                            [&](std::uint32_t segment) { return places.at(segment); });
  // Where a row lies a pitch behind the one before, one move does.
  EXPECT_LT(local.moves.size(), 3 * kRows);
  Parameters parameters(rank_plan);
  make_host_executor()->unpack(local.moves, reinterpret_cast<const std::byte*>(source.data()),
                               parameters.buffers);
  const auto value = [&](std::size_t tensor, std::size_t row, std::size_t col) {
    return std::uint32_t{source.at((tensor * kRows + row) * 3 + col)} << 16;
  };
  const auto word = [&](std::size_t parameter, std::size_t number) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, parameters.bytes.at(parameter).data() + 4 * number, 4);
    return bits;
  };
  for (std::size_t row = 0; row < kRows; ++row) {
    for (std::size_t col = 0; col < 2; ++col) {
      EXPECT_EQ(word(0, 2 * row + col), value(0, row, col)) << row << " " << col;
      EXPECT_EQ(word(1, 8 * col + row % 4 * 2 + row / 4), value(1, row, col)) << row << " " << col;
      EXPECT_EQ(word(2, 8 * col + row), value(2, row, col)) << row << " " << col;
    }
  }
}

TEST(LocalPrograms, TakeTheNegatedExpOfEitherType) {
  Catalog catalog;
  catalog.add("state", DType::kF32, {12});
  catalog.set_reading(0, 0, true);
  const ListedFamily family(catalog, [](const Catalog& tensors, const EngineLayout&, const EngineRank&) {
    Parameter state = stack(tensors, "state", {12}, {{0, Box::whole(tensors[0].shape)}});
    state.parts.front().negated_exp = true;
    return std::vector<Parameter>{state};
  });
  const Plan plan = make_plan(family, plan_cases::topology_of(0, "tp=1", true), Limits());
  const RankPlan rank_plan = make_rank_plan(plan, family, 0);
  std::vector<std::uint32_t> wide(12);
  std::vector<std::uint16_t> narrow(12);
  for (std::size_t i = 0; i < 12; ++i) {
    narrow[i] = static_cast<std::uint16_t>(0x3f00 + 16 * i);
    wide[i] = std::uint32_t{narrow[i]} << 16;
  }
  for (const bool is_narrow : {false, true}) {
    HeldBox state{0, Box::whole(catalog[0].shape), 0, 0, is_narrow ? 24 : 48};
    state.narrow = is_narrow;
    const Sending sending = compile_sending(plan, catalog, 0, HeldWeights({state}, 1));
    EXPECT_TRUE(sending.boxes.at(0).negated_exp);
    EXPECT_FALSE(sending.boxes.at(0).widened);
    const LocalPrograms local = compile_local(rank_plan, Schedule(plan, rank_plan, true),
                                              [&](std::uint32_t) { return sending.moves.at(0); });
    ASSERT_EQ(local.moves.size(), 1u);
    Parameters parameters(rank_plan);
    const auto* const source = is_narrow ? reinterpret_cast<const std::byte*>(narrow.data())
                                         : reinterpret_cast<const std::byte*>(wide.data());
    make_host_executor()->unpack(local.moves, source, parameters.buffers);
    std::vector<std::uint32_t> written(12);
    std::memcpy(written.data(), parameters.bytes.at(0).data(), 48);
    for (std::size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(written[i], negated_exp_bits(std::bit_cast<float>(wide[i]))) << i;
    }
    // The digest of what is sent is that of what is written.
    const std::byte* const buffer = parameters.bytes.at(0).data();
    std::uint64_t sent = 0;
    std::uint64_t found = 0;
    make_host_executor()->digest(sending.boxes, {&source, 1}, {&sent, 1});
    make_host_executor()->digest(rank_plan.checks, {&buffer, 1}, {&found, 1});
    EXPECT_EQ(found, sent);
  }
}

TEST(LocalPrograms, AddOneToWhatIsHeldLessOne) {
  Catalog catalog;
  catalog.add("norm", DType::kBF16, {12});
  const ListedFamily family(catalog, [](const Catalog& tensors, const EngineLayout&, const EngineRank&) {
    return std::vector<Parameter>{stack(tensors, "norm", {12}, {{0, Box::whole(tensors[0].shape)}})};
  });
  const Plan plan = make_plan(family, plan_cases::topology_of(0, "tp=1", true), Limits());
  const RankPlan rank_plan = make_rank_plan(plan, family, 0);
  std::vector<std::uint16_t> held(12);
  for (std::size_t i = 0; i < 12; ++i) held[i] = static_cast<std::uint16_t>(0xbf00 - 37 * i);
  HeldBox box{0, Box::whole(catalog[0].shape), 0, 0, 24};
  box.less_one = true;
  const Sending sending = compile_sending(plan, catalog, 0, HeldWeights({box}, 1));
  const LocalPrograms local = compile_local(rank_plan, Schedule(plan, rank_plan, true),
                                            [&](std::uint32_t) { return sending.moves.at(0); });
  ASSERT_EQ(local.moves.size(), 1u);
  Parameters parameters(rank_plan);
  const auto* const source = reinterpret_cast<const std::byte*>(held.data());
  make_host_executor()->unpack(local.moves, source, parameters.buffers);
  std::vector<std::uint16_t> written(12);
  std::memcpy(written.data(), parameters.bytes.at(0).data(), 24);
  for (std::size_t i = 0; i < 12; ++i) EXPECT_EQ(written[i], one_more_bf16(held[i])) << i;
  const std::byte* const buffer = parameters.bytes.at(0).data();
  std::uint64_t sent = 0;
  std::uint64_t found = 0;
  make_host_executor()->digest(sending.boxes, {&source, 1}, {&sent, 1});
  make_host_executor()->digest(rank_plan.checks, {&buffer, 1}, {&found, 1});
  EXPECT_EQ(found, sent);
}

}  // namespace

}  // namespace weightcast
