// Updates over NCCL between two GPUs, compared with the naive construction of the parameters.

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <ostream>
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
  std::int64_t buffers = 3;
  FanOut fan_out = FanOut::kNeeded;
  QuantizeAt quantize_at = QuantizeAt::kSource;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }
};

Topology split(Topology topology, SourceSplit how) {
  topology.source_split = how;
  return topology;
}

naive::Model biased_model() {
  naive::Model model = small_model(true);
  model.bias = true;
  model.tied = true;
  model.mlp_only_layers = {0};
  return model;
}

std::vector<Case> cases() {
  const naive::Model dense = small_model(false);
  const naive::Model moe = small_model(true);
  return {
      {"OneToOne", dense, topology_of(1, "tp=1")},
      {"OneToOneOfExperts", moe, topology_of(1, "tp=1", "cutlass"), 100'001, 2},
      {"OneBuffer", moe, topology_of(1, "tp=1"), 64 << 10, 1},
      {"EverythingInOneBucket", moe, topology_of(1, "tp=1"), 256 << 20, 3},
      {"Colocated", moe, colocated("tp=2,ep=2")},
      {"ColocatedOneBuffer", moe, colocated("tp=2,ep=2"), 64 << 10, 1},
      {"ColocatedFourBuffers", biased_model(), colocated("tp=2,ep=1"), 70'000, 4},
      {"ColocatedExperts", moe, split(colocated("tp=2,ep=2"), SourceSplit::kExpert), 64 << 10, 2},
      {"ColocatedRows", moe, split(colocated("tp=2,ep=2"), SourceSplit::kRow)},
      {"ColocatedReplicas", dense, colocated("replicas=2"), 80'000, 2},
      {"ColocatedStages", biased_model(), colocated("pp=2")},
      {"CodesTravel", block_model(), quantized(topology_of(1, "tp=1"), "fp8-block"), 200'000},
      {"CodesTravelColocated", block_model(), quantized(colocated("tp=2,ep=2"), "mxfp8"), 100'000, 2},
      {"CodesTravelOfChannels", block_model(), quantized(colocated("tp=2"), "fp8-channel"), 64 << 10},
      {"ScalesOfWholeTensors", block_model(), quantized(colocated("tp=2"), "fp8-tensor"), 1 << 20},
      {"QuantizedOnArrival", block_model(), quantized(topology_of(1, "tp=1", "cutlass"), "fp8-block"),
       64 << 10, 3, FanOut::kNeeded, QuantizeAt::kDestination},
      {"QuantizedOnArrivalFp4", block_model(), quantized(topology_of(1, "tp=1", "trtllm"), "nvfp4"), 1 << 20,
       3, FanOut::kNeeded, QuantizeAt::kDestination},
      {"QuantizedOnArrivalColocated", block_model(), quantized(colocated("tp=2"), "fp8-tensor"), 100'000, 2,
       FanOut::kNeeded, QuantizeAt::kDestination},
      {"ColocatedEverythingToEverybody", moe, colocated("tp=2"), 64 << 10, 3, FanOut::kAll},
  };
}

class GpuSession : public ::testing::TestWithParam<std::tuple<Case, Where>> {};

TEST_P(GpuSession, ParametersAreThoseOfEachVersion) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto& [c, where] = GetParam();
  under_control(2, [&](Control& control) {
    const WireChoice placement = choose_wire(control, "nccl");
    EXPECT_EQ(placement.wire, Wire::kNccl);
    const auto family = c.model.family();
    Limits limits;
    limits.bucket_bytes = c.bucket_bytes;
    limits.buffers = c.buffers;
    limits.fan_out = c.fan_out;
    limits.quantize_at = c.quantize_at;
    Session session(control, *family, c.topology, limits, {.wire = Wire::kNccl});
    Progress progress(ProgressMode::kNever, false);
    for (const std::int64_t version : {7, 8, 1'000'000}) {
      SCOPED_TRACE(version);
      const auto source = make_source(session, family->catalog(), control.rank(), version, where);
      session.poison();
      session.update(source.get(), version, true, progress);
      expect_holds(session, control.rank(), c.model, synthetic_weights(c.model, version));
    }
    // The same bytes without a look at them.
    const auto source = make_source(session, family->catalog(), control.rank(), 9, where);
    session.poison();
    session.update(source.get(), 9, false, progress);
    expect_holds(session, control.rank(), c.model, synthetic_weights(c.model, 9));
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, GpuSession,
                         ::testing::Combine(::testing::ValuesIn(cases()),
                                            ::testing::Values(Where::kHost, Where::kGpu)),
                         [](const auto& of) {
                           return std::string(std::get<0>(of.param).name) +
                                  (std::get<1>(of.param) == Where::kHost ? "FromTheHost" : "");
                         });

TEST(GpuSession, AWrongSegmentIsNamedAndTheNextUpdateIsFine) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const naive::Model model = small_model(true);
  under_control(2, [&](Control& control) {
    choose_wire(control, "nccl");
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    Session session(control, *family, topology_of(1, "tp=1"), limits, {.wire = Wire::kNccl});
    Progress progress(ProgressMode::kNever, false);
    const auto source = make_source(session, family->catalog(), control.rank(), 1, Where::kHost);
    const auto wrong = static_cast<std::uint32_t>(session.plan().segments.size() / 2);
    std::optional<LyingSource> liar;
    if (source) liar.emplace(*source->on_host(), wrong);
    const std::string& tensor = family->catalog()[session.plan().segments[wrong].tensor].name;
    expect_noticed(session, liar ? &*liar : nullptr, tensor);
    session.update(source.get(), 1, true, progress);
    expect_holds(session, control.rank(), model, synthetic_weights(model, 1));
  });
}

TEST(GpuSession, AnUpdateThatFailsLeavesTheProcessesFitForTheNext) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const naive::Model model = block_model();
  for (const Topology& topology : {quantized(topology_of(1, "tp=1"), "fp8-tensor"), colocated("tp=2,ep=2")}) {
    for (const Stage stage : {Stage::kFirstPack, Stage::kPack, Stage::kDigest, Stage::kUnchanged}) {
      under_control(2, [&](Control& control) {
        choose_wire(control, "nccl");
        const auto family = model.family();
        Limits limits;
        limits.bucket_bytes = Limits::kLeastBucketBytes;
        Session session(control, *family, topology, limits, {.wire = Wire::kNccl});
        const auto values = make_source(session, family->catalog(), control.rank(), 5, Where::kHost);
        Progress progress(ProgressMode::kNever, false);
        for (int failures = 0; failures < 2; ++failures) {
          std::optional<FailingSource> source;
          const Stage fails = control.rank() == 0 ? stage : Stage::kNone;
          if (values) source.emplace(*values->on_host(), fails, session.plan());
          ::testing::internal::CaptureStderr();
          EXPECT_THROW(session.update(source ? &*source : nullptr, 5, true, progress), AgreedFailure);
          ::testing::internal::GetCapturedStderr();
          session.poison();
          session.update(values.get(), 5, true, progress);
          expect_holds(session, control.rank(), model, synthetic_weights(model, 5));
        }
      });
    }
  }
}

}  // namespace

}  // namespace weightcast
