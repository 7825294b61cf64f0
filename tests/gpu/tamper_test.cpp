// Parameters that change after they were written: this program stands before one of CUDA's own functions.

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "control_world.hpp"
#include "gpu.hpp"
#include "session/gpu.hpp"
#include "session_cases.hpp"
#include "source/memory_source.hpp"
#include "sys/cuda.hpp"

namespace {

/// A byte of device memory that is overwritten in every stream whenever something is recorded there: also
/// behind the kernel that wrote it and before the one that looks at it.
struct Tampering {
  std::byte* at = nullptr;
  int value = 0;
};

Tampering tampering;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): CUDA's name
extern "C" cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (tampering.at != nullptr) cudaMemsetAsync(tampering.at, tampering.value, 1, stream);
  static auto* const next =
      reinterpret_cast<cudaError_t (*)(cudaEvent_t, cudaStream_t)>(dlsym(RTLD_NEXT, "cudaEventRecord"));
  return next(event, stream);
}

namespace weightcast {

namespace {

using namespace session_cases;
using mpi_test::under_control;

/// Where the weights are, whether every rank has some, and which parameter is changed.
using Case = std::tuple<bool, bool, const char*>;

class Tamper : public ::testing::TestWithParam<Case> {};

TEST_P(Tamper, OneByteOfAParameterIsNoticedAndNamed) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto& [resident, colocate, name] = GetParam();
  const naive::Model model = small_model(true);
  under_control(2, [&, resident = resident, colocate = colocate, name = std::string(name)](Control& control) {
    choose_wire(control, "nccl");
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    const Topology topology = colocate ? colocated("tp=2,ep=2") : topology_of(1, "tp=1");
    Session session(control, *family, topology, limits, {.wire = Wire::kNccl});
    std::unique_ptr<Source> source;
    if (topology.trainer(control.rank())) {
      if (resident) {
        source = make_resident_source(session.plan(), family->catalog(), control.rank(), 1);
      } else {
        source = std::make_unique<MemorySource>(session.plan(), family->catalog(), control.rank(), 1);
      }
    }
    Progress progress(ProgressMode::kNever, false);
    session.update(source.get(), 1, true, progress);
    expect_holds(session, control.rank(), model, synthetic_weights(model, 1));

    // The last rank changes the last byte of its parameter.
    const std::vector<Parameter>& parameters = session.rank_plan().parameters;
    const auto found = std::find_if(parameters.begin(), parameters.end(),
                                    [&](const Parameter& parameter) { return parameter.name == name; });
    if (control.rank() == 1) {
      ASSERT_NE(found, parameters.end());
      const auto p = static_cast<std::size_t>(found - parameters.begin());
      std::byte last{};
      session.read_parameter(
          p, [&](std::int64_t /*offset*/, std::span<const std::byte> bytes) { last = bytes.back(); });
      tampering.value = std::to_integer<int>(last ^ std::byte{1});
      tampering.at = session.parameter(p).data() + session.parameter(p).size() - 1;
    }
    expect_noticed(session, source.get(), "parameter " + name);
    tampering.at = nullptr;
    session.update(source.get(), 1, true, progress);
    expect_holds(session, control.rank(), model, synthetic_weights(model, 1));
  });
}

// The last byte of the embedding is padding: 1000 rows are padded to 1024.
INSTANTIATE_TEST_SUITE_P(Everywhere, Tamper,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool(),
                                            ::testing::Values("model.layers.1.mlp.experts.w13_weight",
                                                              "model.layers.0.self_attn.qkv_proj.weight",
                                                              "model.embed_tokens.weight")));

}  // namespace

}  // namespace weightcast
