// What roots write into the parameters of others beside the same through staging.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "emulated_update.hpp"
#include "kernels/executor.hpp"
#include "naive_model.hpp"
#include "plan/direct_routes.hpp"
#include "plan/held_weights.hpp"
#include "plan/routes.hpp"
#include "plan/sending.hpp"
#include "plan_cases.hpp"
#include "session/direct_programs.hpp"

namespace weightcast {

namespace {

using Bytes = std::vector<std::byte>;

/// The parameters of all ranks, one behind the other; they hold rubbish at first.
struct Parameters {
  explicit Parameters(const std::vector<RankPlan>& rank_plans) {
    for (const RankPlan& rank_plan : rank_plans) {
      first.push_back(static_cast<std::uint32_t>(bytes.size()));
      for (const Parameter& parameter : rank_plan.parameters) {
        bytes.emplace_back(static_cast<std::size_t>(parameter.bytes()), std::byte{0xa5});
      }
    }
    for (Bytes& parameter : bytes) buffers.push_back(parameter.data());
  }

  std::deque<Bytes> bytes;
  std::vector<std::byte*> buffers;
  std::vector<std::uint32_t> first;  ///< of each rank
};

/// A trainer's boxes, cut where `cut` says so into an upper and a lower part far from each other. Norms are
/// held less one.
struct Held {
  Held(const Plan& plan, const Catalog& catalog, std::int64_t trainer, const naive::Weights& values,
       bool cut) {
    const OwnWeights own = own_weights(plan, catalog, trainer);
    std::vector<HeldBox> boxes;
    for (HeldBox box : own.held.boxes()) {
      box.less_one = catalog[box.tensor].name.find("norm") != std::string::npos;
      const std::int64_t upper = cut ? box.box.rows / 2 : 0;
      HeldBox above = box;
      above.box.rows = upper;
      box.box.row += upper;
      box.box.rows -= upper;
      if (upper > 0) add(above, catalog, values, boxes);
      add(box, catalog, values, boxes);
    }
    weights = HeldWeights(std::move(boxes), catalog.size());
  }

  void add(HeldBox box, const Catalog& catalog, const naive::Weights& values, std::vector<HeldBox>& boxes) {
    const Tensor& tensor = catalog[box.tensor];
    const std::int64_t row_bytes = tensor.shape.cols() * dtype_bytes(tensor.dtype);
    box.offset = static_cast<std::int64_t>(bytes.size());
    box.pitch = row_bytes + 16;
    bytes.resize(bytes.size() + static_cast<std::size_t>(box.box.rows * box.pitch));
    for (std::int64_t row = 0; row < box.box.rows; ++row) {
      std::memcpy(bytes.data() + box.offset + row * box.pitch,
                  values.at(tensor.name).data() + (box.box.row + row) * row_bytes,
                  static_cast<std::size_t>(row_bytes));
    }
    boxes.push_back(box);
  }

  HeldWeights weights;
  Bytes bytes;
};

template <typename Entry>
std::span<const Entry> part(const std::vector<Entry>& list, ProgramRange range) {
  return std::span(list).subspan(range.first, range.count);
}

/// Runs an update with all routes that leave a rank direct, and the same over staging. Returns the buckets
/// that went directly.
std::size_t expect_same_parameters(const naive::Model& model, const Topology& topology, const Limits& limits,
                                   bool cut = false) {
  const auto family = model.family();
  const Catalog& catalog = family->catalog();
  const Plan plan = make_plan(*family, topology, limits);
  const naive::Weights values = naive::random_values(model, 1);
  const auto executor = make_host_executor();
  std::vector<GlobalScale> scales;
  for (std::size_t i = 0; i < plan.scopes.size(); ++i) {
    scales.push_back(global_scale(topology.engine.quantizer.value(), 1.0f));
  }
  const Routes routes = routes_of(plan);
  const std::vector<bool> of_route =
      choose_direct(routes.routes, std::vector<bool>(routes.routes.size(), true), Direct::kAlways);
  std::vector<bool> direct;
  for (const std::size_t route : routes.of_bucket) direct.push_back(of_route[route]);
  std::vector<RankPlan> rank_plans;
  for (std::int64_t rank = 0; rank < topology.ranks(); ++rank) {
    rank_plans.push_back(make_rank_plan(plan, *family, rank));
  }
  Parameters at_once(rank_plans);
  Parameters through_staging(rank_plans);
  std::vector<DirectDestination> destinations;
  for (std::size_t rank = 0; rank < rank_plans.size(); ++rank) {
    destinations.push_back({&rank_plans[rank], at_once.first[rank]});
  }
  std::size_t count = 0;
  std::ptrdiff_t one_more = 0;
  for (std::int64_t rank = 0; rank < topology.ranks(); ++rank) {
    const auto trainer = topology.trainer(rank);
    if (!trainer) continue;
    const RankPlan& mine = rank_plans[static_cast<std::size_t>(rank)];
    const Held held(plan, catalog, *trainer, values, cut);
    const Sending sending = compile_sending(plan, catalog, *trainer, held.weights);
    std::vector<ProgramRange> quants;
    for (const Sending::Ranges& ranges : sending.buckets) quants.push_back(ranges.quants);
    const auto places = [&](std::uint32_t segment) {
      std::vector<Move> found;
      for (std::size_t i = 0; i < sending.moves.size(); ++i) {
        if (sending.segments[i] == segment) found.push_back(sending.moves[i]);
      }
      return found;
    };
    const Schedule schedule(plan, mine, true, {}, direct);
    const DirectPrograms programs =
        compile_direct(plan, catalog, mine, schedule, destinations, {places, sending.quants, quants});
    one_more += std::ranges::count_if(programs.moves, [](const Move& move) { return adds_one(move.op); });
    const std::byte* const source = held.bytes.data();
    std::vector<QuantDigests> sent(sending.quants.size());
    for (std::size_t k = 0; k < mine.buckets.size(); ++k) {
      const RankBucket& bucket = mine.buckets[k];
      if (!bucket.root || !direct[bucket.bucket]) continue;
      ++count;
      EXPECT_TRUE(schedule.direct(k));
      EXPECT_FALSE(schedule.staged(k));
      EXPECT_FALSE(schedule.local(k));
      executor->unpack(part(programs.moves, programs.move_programs[k]), source, at_once.buffers);
      const QuantBuffers buffers{{&source, 1}, nullptr, at_once.buffers};
      std::vector<QuantDigests> digests(programs.code_programs[k].count);
      executor->quantize(part(programs.codes, programs.code_programs[k]), buffers, scales, digests);
      executor->quantize(part(programs.quants, programs.quant_programs[k]), buffers, scales, {});

      Bytes staging(static_cast<std::size_t>(plan.buckets[bucket.bucket].bytes));
      const Sending::Ranges& ranges = sending.buckets[bucket.bucket];
      executor->pack(part(sending.moves, ranges.moves), {&source, 1}, staging.data());
      std::vector<QuantDigests> packed(ranges.quants.count);
      executor->quantize(part(sending.quants, ranges.quants), {{&source, 1}, staging.data(), {}}, scales,
                         packed);
      EXPECT_EQ(digests.size(), packed.size());
      for (std::size_t i = 0; i < std::min(digests.size(), packed.size()); ++i) {
        EXPECT_EQ(digests[i].codes, packed[i].codes);
        EXPECT_EQ(digests[i].scales, packed[i].scales);
      }
      for (std::size_t other = 0; other < rank_plans.size(); ++other) {
        const std::span<std::byte* const> theirs =
            std::span(through_staging.buffers).subspan(through_staging.first[other]);
        for (const RankBucket& of : rank_plans[other].buckets) {
          if (of.bucket != bucket.bucket || !of.destination) continue;
          executor->unpack(std::span(rank_plans[other].moves).subspan(of.first_move, of.moves),
                           staging.data(), theirs);
          executor->quantize(rank_plans[other].quant_program(of), {{}, staging.data(), theirs}, scales, {});
        }
      }
    }
  }
  EXPECT_GT(one_more, 0);
  for (std::size_t p = 0; p < at_once.bytes.size(); ++p) {
    EXPECT_TRUE(at_once.bytes[p] == through_staging.bytes[p]) << p;
  }
  return count;
}

TEST(DirectPrograms, WriteWhatStagingWouldBring) {
  for (const char* engine : {"tp=2,ep=2", "tp=2,ep=1", "pp=2", "tp=4,ep=4", "replicas=2,tp=2"}) {
    SCOPED_TRACE(engine);
    for (const bool cut : {false, true}) {
      EXPECT_GT(expect_same_parameters(plan_cases::small_moe(), plan_cases::topology_of(2, engine),
                                       plan_cases::capped(64 << 10), cut),
                0u);
      Topology colocated = plan_cases::topology_of(0, engine, true);
      colocated.source_split = SourceSplit::kRow;
      EXPECT_GT(expect_same_parameters(plan_cases::small_moe(), colocated,
                                       plan_cases::capped(100'000, FanOut::kAll), cut),
                0u);
    }
  }
}

TEST(DirectPrograms, QuantiseWhatStagingWouldBring) {
  for (const char* quantizer : {"fp8-block", "fp8-tensor", "fp8-channel", "mxfp8", "nvfp4"}) {
    SCOPED_TRACE(quantizer);
    for (const QuantizeAt side : {QuantizeAt::kSource, QuantizeAt::kDestination}) {
      for (const char* engine : {"tp=2", "replicas=2"}) {
        Topology topology = plan_cases::topology_of(0, engine, true);
        // One that takes all of them; with nvfp4 it lays scales out as its kernels read them.
        topology.engine = parse_engine_layout(engine, "cutlass");
        topology.engine.quantizer = parse_quantizer(quantizer);
        Limits limits = plan_cases::capped(100'000);
        limits.quantize_at = side;
        EXPECT_GT(expect_same_parameters(plan_cases::quantizable(true), topology, limits), 0u);
      }
    }
  }
}

}  // namespace

}  // namespace weightcast
