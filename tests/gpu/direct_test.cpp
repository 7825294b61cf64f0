// Updates in which roots write into the parameters of other ranks, on two GPUs, compared with the naive
// construction of the parameters.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <ostream>
#include <span>
#include <utility>
#include <vector>

#include "control_world.hpp"
#include "gpu.hpp"
#include "make_source.hpp"
#include "session_cases.hpp"

namespace weightcast {

namespace {

using namespace session_cases;
using mpi_test::under_control;

struct Case {
  const char* name;
  naive::Model model;
  Topology topology;
  std::int64_t bucket_bytes = Limits::kLeastBucketBytes;
  FanOut fan_out = FanOut::kNeeded;
  QuantizeAt quantize_at = QuantizeAt::kSource;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

Topology split(Topology topology, SourceSplit how) {
  topology.source_split = how;
  return topology;
}

std::vector<Case> cases() {
  const naive::Model dense = small_model(false);
  const naive::Model moe = small_model(true);
  naive::Model biased = moe;
  biased.bias = true;
  biased.tied = true;
  const auto at_destination = QuantizeAt::kDestination;
  return {
      {"OneToOne", dense, topology_of(1, "tp=1")},
      {"OneToOneOfExperts", moe, topology_of(1, "tp=1", "cutlass"), 100'001},
      {"OneToOneTransposed", moe, topology_of(1, "tp=1", "triton-kernels"), 100'001},
      {"OneToOneInOneBucket", moe, topology_of(1, "tp=1"), 256 << 20},
      {"ColocatedRows", moe, split(colocated("tp=2,ep=2"), SourceSplit::kRow)},
      {"ColocatedExperts", moe, split(colocated("tp=2,ep=2"), SourceSplit::kExpert), 64 << 10},
      {"ColocatedBiases", biased, colocated("tp=2,ep=1"), 70'000},
      {"ColocatedReplicas", dense, colocated("replicas=2"), 80'000},
      {"ColocatedStages", biased, colocated("pp=2")},
      {"ColocatedEverythingToEverybody", moe, colocated("tp=2"), 64 << 10, FanOut::kAll},
      {"CodesTravel", block_model(), quantized(topology_of(1, "tp=1"), "fp8-block"), 200'000},
      {"CodesTravelColocated", block_model(), quantized(colocated("tp=2,ep=2"), "mxfp8"), 100'000},
      {"CodesTravelToReplicas", block_model(), quantized(colocated("replicas=2"), "fp8-block"), 100'000},
      {"CodesTravelOfChannels", block_model(), quantized(colocated("tp=2"), "fp8-channel"), 64 << 10},
      {"CodesTravelSwizzled", block_model(), quantized(topology_of(1, "tp=1", "trtllm"), "nvfp4"), 1 << 20},
      {"ScalesOfWholeTensors", block_model(), quantized(colocated("tp=2"), "fp8-tensor"), 1 << 20},
      {"QuantizedForADestination", block_model(), quantized(topology_of(1, "tp=1", "cutlass"), "fp8-block"),
       64 << 10, FanOut::kNeeded, at_destination},
      {"QuantizedForADestinationFp4", block_model(), quantized(topology_of(1, "tp=1", "trtllm"), "nvfp4"),
       1 << 20, FanOut::kNeeded, at_destination},
      {"QuantizedForADestinationColocated", block_model(), quantized(colocated("tp=2"), "fp8-tensor"),
       100'000, FanOut::kNeeded, at_destination},
  };
}

class GpuDirect : public ::testing::TestWithParam<Case> {};

TEST_P(GpuDirect, ParametersAreThoseOfEachVersion) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const Case& c = GetParam();
  under_control(2, [&](Control& control) {
    choose_wire(control, "nccl");
    const auto family = c.model.family();
    Limits limits;
    limits.bucket_bytes = c.bucket_bytes;
    limits.fan_out = c.fan_out;
    limits.quantize_at = c.quantize_at;
    Session session(control, *family, c.topology, limits, {.wire = Wire::kNccl, .direct = Direct::kAlways});
    const DirectWays ways = session.start_seconds().gpu.ways.value();
    EXPECT_GT(ways.direct_routes, 0);
    EXPECT_EQ(ways.nccl_routes, 0);
    EXPECT_TRUE(ways.obstacles.empty());
    Progress progress(ProgressMode::kNever, false);
    // Again and again with poisoned parameters: what is looked at too early is seen.
    for (const std::int64_t version : {7, 8, 9, 10, 11, 12, 1'000'000}) {
      SCOPED_TRACE(version);
      const auto source = make_source(session, family->catalog(), control.rank(), version, Where::kGpu);
      session.poison();
      session.update(source.get(), version, version % 3 != 0, progress);
      expect_holds(session, control.rank(), c.model, synthetic_weights(c.model, version));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, GpuDirect, ::testing::ValuesIn(cases()),
                         [](const auto& of) { return std::string(of.param.name); });

/// Memory that is said to be in pieces.
class InPieces final : public Memory {
 public:
  explicit InPieces(std::unique_ptr<Memory> memory) : memory_(std::move(memory)) {}
  std::byte* data() const override { return memory_->data(); }
  std::int64_t bytes() const override { return memory_->bytes(); }
  bool on_host() const override { return false; }
  void read(std::int64_t offset, std::span<std::byte> to) const override { memory_->read(offset, to); }
  void write(std::int64_t offset, std::span<const std::byte> from) override { memory_->write(offset, from); }
  void fill(std::int64_t offset, std::int64_t bytes, std::byte value) override {
    memory_->fill(offset, bytes, value);
  }
  PeerHandle peer_handle() const override { return {PeerHandle::Kind::kPieces, 0, {}}; }

 private:
  std::unique_ptr<Memory> memory_;
};

TEST(GpuDirect, SomeRoutesGoOverNcclInTheSameUpdate) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const naive::Model model = small_model(true);
  const Topology topology = split(colocated("tp=2,ep=2"), SourceSplit::kRow);
  under_control(2, [&](Control& control) {
    choose_wire(control, "nccl");
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    SessionOptions options{.wire = Wire::kNccl, .direct = Direct::kAuto};
    if (control.rank() == 1) {
      std::vector<GivenParameter> given;
      std::int64_t bytes = 0;
      for (const Parameter& parameter :
           family->parameters(topology.engine, engine_rank(topology.engine, control.rank()))) {
        given.push_back({parameter.name, 0, bytes, parameter.bytes()});
        bytes += (parameter.bytes() + 255) / 256 * 256;
      }
      std::vector<std::shared_ptr<Memory>> memory{
          std::make_shared<InPieces>(make_gpu_memory(bytes, "a test"))};
      options.parameters = given_parameter_memory(std::move(memory), std::move(given));
    }
    Session session(control, *family, topology, limits, options);
    const DirectWays ways = session.start_seconds().gpu.ways.value();
    EXPECT_GT(ways.direct_routes, 0);
    EXPECT_GT(ways.nccl_routes, 0);
    if (control.rank() == 0) {
      ASSERT_EQ(ways.obstacles.size(), 1u);
      EXPECT_NE(ways.obstacles[0].find("rank 0"), std::string::npos) << ways.obstacles[0];
      EXPECT_NE(ways.obstacles[0].find("rank 1: their memory is in pieces"), std::string::npos)
          << ways.obstacles[0];
    }
    Progress progress(ProgressMode::kNever, false);
    for (const std::int64_t version : {1, 2, 3, 4, 5, 6}) {
      const auto source = make_source(session, family->catalog(), control.rank(), version, Where::kGpu);
      session.poison();
      session.update(source.get(), version, version % 2 == 0, progress);
      expect_holds(session, control.rank(), model, synthetic_weights(model, version));
    }
  });
}

TEST(GpuDirect, ASessionIsOpenedAnew) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const naive::Model model = small_model(true);
  under_control(2, [&](Control& control) {
    choose_wire(control, "nccl");
    const auto family = model.family();
    Progress progress(ProgressMode::kNever, false);
    for (const Direct direct : {Direct::kAlways, Direct::kNever, Direct::kAuto}) {
      Session session(control, *family, topology_of(1, "tp=1"), {}, {.wire = Wire::kNccl, .direct = direct});
      const auto source = make_source(session, family->catalog(), control.rank(), 3, Where::kGpu);
      for (int update = 0; update < 3; ++update) {
        session.take_staging();
        session.poison();
        session.update(source.get(), 3, true, progress);
        expect_holds(session, control.rank(), model, synthetic_weights(model, 3));
        session.release_staging();
      }
    }
  });
}

}  // namespace

}  // namespace weightcast
