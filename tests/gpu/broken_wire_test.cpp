// Updates whose wire fails on one rank: this program stands before NCCL's own word about a communicator.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "control_world.hpp"
#include "gpu.hpp"
#include "make_source.hpp"
#include "session_cases.hpp"

namespace {

/// How many looks at a communicator go well before one that finds it failed; 0: all do.
std::atomic<int> looks_left = 0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): NCCL's name
extern "C" ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* state) {
  static auto* const next =
      reinterpret_cast<decltype(&ncclCommGetAsyncError)>(dlsym(RTLD_NEXT, "ncclCommGetAsyncError"));
  const ncclResult_t result = next(communicator, state);
  if (looks_left > 0 && --looks_left == 0) *state = ncclRemoteError;
  return result;
}

namespace weightcast {

namespace {

using namespace session_cases;
using mpi_test::under_control;

/// Takes so long for its third bucket that the ranks look at the wire many times meanwhile.
class SlowSource final : public HostSource {
 public:
  explicit SlowSource(HostSource& source) : source_(source) {}
  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override {
    source_.find_largest(trainer, largest, poll);
  }
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override {
    constexpr std::chrono::milliseconds kLong{500};
    if (++packed_ == 3) std::this_thread::sleep_for(kLong);
    source_.use_scales(scales());
    source_.finish_bucket(bucket, staging, digests);
  }
  std::byte* in_place(std::uint32_t segment) const override { return source_.in_place(segment); }

 private:
  HostSource& source_;
  int packed_ = 0;
};

/// The rank whose wire fails, at which of its looks, where the weights are, and whether both ranks have some.
using Case = std::tuple<int, int, Where, bool>;

class BrokenWire : public ::testing::TestWithParam<Case> {};

TEST_P(BrokenWire, EndsTheUpdateAndTheNextOneIsWhole) {
  WEIGHTCAST_NEEDS_GPUS(2);
  const auto& [failing, looks, where, colocate] = GetParam();
  const naive::Model model = small_model(true);
  under_control(
      2, [&, failing = failing, looks = looks, where = where, colocate = colocate](Control& control) {
        choose_wire(control, "nccl");
        const auto family = model.family();
        Limits limits;
        limits.bucket_bytes = Limits::kLeastBucketBytes;
        const Topology topology = colocate ? colocated("tp=2,ep=2") : topology_of(1, "tp=1");
        Session session(control, *family, topology, limits, {.wire = Wire::kNccl});
        Progress progress(ProgressMode::kNever, false);
        for (const std::int64_t version : {1, 2}) {
          const auto source = make_source(session, family->catalog(), control.rank(), version, where);
          std::optional<SlowSource> slow;
          if (source && where == Where::kHost) slow.emplace(*source->on_host());
          if (control.rank() == failing) looks_left = looks;
          ::testing::internal::CaptureStderr();
          std::string line;
          try {
            session.update(slow ? &*slow : source.get(), version, true, progress);
          } catch (const AgreedFailure& failure) {
            line = failure.what();
          }
          ::testing::internal::GetCapturedStderr();
          EXPECT_NE(line.find("rank " + std::to_string(failing)), std::string::npos) << line;
          EXPECT_NE(line.find("NCCL"), std::string::npos) << line;
          session.poison();
          session.update(source.get(), version, true, progress);
          expect_holds(session, control.rank(), model, synthetic_weights(model, version));
        }
      });
}

INSTANTIATE_TEST_SUITE_P(AtOnce, BrokenWire,
                         ::testing::Combine(::testing::Values(0, 1), ::testing::Values(1, 4),
                                            ::testing::Values(Where::kHost, Where::kGpu), ::testing::Bool()));
// While a slow trainer reads, the others wait in the middle of the stream.
INSTANTIATE_TEST_SUITE_P(AmidTheStream, BrokenWire,
                         ::testing::Combine(::testing::Values(0, 1), ::testing::Values(60),
                                            ::testing::Values(Where::kHost), ::testing::Bool()));

}  // namespace

}  // namespace weightcast
