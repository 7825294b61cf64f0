// How often the host waits for the device in an update: this program stands before CUDA's own functions.

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "control_world.hpp"
#include "gpu.hpp"
#include "kernels/digest.hpp"
#include "session/gpu.hpp"
#include "session_cases.hpp"
#include "source/memory_source.hpp"

namespace {

/// What the thread that runs the update asked of CUDA.
struct Calls {
  std::atomic<bool> counting = false;
  std::thread::id thread;
  int synchronisations = 0;  ///< calls that block
  int copies = 0;            ///< copies that block
  int loops = 0;             ///< runs of queries without anything between them
  bool asking = false;

  bool mine() const { return counting && std::this_thread::get_id() == thread; }
  void wait() {
    if (mine()) ++synchronisations;
  }
  void copy() {
    if (mine()) ++copies;
  }
  void ask() {
    if (!mine()) return;
    if (!asking) ++loops;
    asking = true;
  }
  void work() {
    if (mine()) asking = false;
  }
  void start() {
    synchronisations = copies = loops = 0;
    asking = false;
    thread = std::this_thread::get_id();
    counting = true;
  }
};

Calls calls;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming): CUDA's names
extern "C" cudaError_t cudaDeviceSynchronize() {
  calls.wait();
  return next<decltype(cudaDeviceSynchronize)>("cudaDeviceSynchronize")();
}
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  calls.wait();
  return next<decltype(cudaStreamSynchronize)>("cudaStreamSynchronize")(stream);
}
extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  calls.wait();
  return next<decltype(cudaEventSynchronize)>("cudaEventSynchronize")(event);
}
extern "C" cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  calls.copy();
  return next<decltype(cudaMemcpy)>("cudaMemcpy")(to, from, bytes, kind);
}
extern "C" cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  calls.copy();
  return next<decltype(cudaMemset)>("cudaMemset")(to, value, bytes);
}
extern "C" cudaError_t cudaFree(void* memory) {
  calls.wait();
  return next<cudaError_t(void*)>("cudaFree")(memory);
}
extern "C" cudaError_t cudaFreeHost(void* memory) {
  calls.wait();
  return next<decltype(cudaFreeHost)>("cudaFreeHost")(memory);
}
extern "C" cudaError_t cudaEventQuery(cudaEvent_t event) {
  calls.ask();
  return next<decltype(cudaEventQuery)>("cudaEventQuery")(event);
}
extern "C" cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  calls.work();
  return next<decltype(cudaEventRecord)>("cudaEventRecord")(event, stream);
}
extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  calls.work();
  return next<decltype(cudaStreamWaitEvent)>("cudaStreamWaitEvent")(stream, event, flags);
}
extern "C" cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                       cudaStream_t stream) {
  calls.work();
  return next<decltype(cudaMemcpyAsync)>("cudaMemcpyAsync")(to, from, bytes, kind, stream);
}
// NOLINTEND(readability-identifier-naming)

namespace weightcast {

namespace {

using namespace session_cases;
using mpi_test::under_control;

/// Dense, with experts, tied and biased: every kind of model that there is.
std::vector<naive::Model> models() {
  naive::Model tied = small_model(true);
  tied.tied = true;
  tied.bias = true;
  tied.mlp_only_layers = {1};
  return {small_model(false), small_model(true), tied};
}

/// Expects the digests to be there, and those of the parameters to be what the host makes of them.
void expect_digests(Control& control, const Session& session, std::vector<std::uint64_t>& sent,
                    const std::vector<std::uint64_t>& written) {
  control.agreement.sum(sent);
  const RankPlan& rank_plan = session.rank_plan();
  for (std::size_t i = 0; i < rank_plan.checks.size(); ++i) {
    const DigestBox& check = rank_plan.checks[i];
    std::vector<std::byte> live;
    session.read_parameter(check.buffer, [&](std::int64_t /*offset*/, std::span<const std::byte> bytes) {
      live.insert(live.end(), bytes.begin(), bytes.end());
    });
    const std::uint64_t digest =
        digest_box(live.data() + check.offset, check.pitch, check.box, check.element_bytes, check.tensor_key);
    EXPECT_NE(digest, 0);
    EXPECT_EQ(written[i], digest);
    EXPECT_EQ(check.widened ? widened_digest(sent[check.digest]) : sent[check.digest], digest);
  }
}

TEST(Waits, OneAnUpdateAtItsEnd) {
  WEIGHTCAST_NEEDS_GPUS(2);
  for (const naive::Model& model : models()) {
    for (const Topology& topology : {topology_of(1, "tp=1"), colocated("tp=2")}) {
      under_control(2, [&](Control& control) {
        choose_wire(control, "nccl");
        const auto family = model.family();
        Limits limits;
        limits.bucket_bytes = Limits::kLeastBucketBytes;
        Session session(control, *family, topology, limits, {.wire = Wire::kNccl});
        EXPECT_GT(session.rank_plan().buckets.size(), 6);
        std::unique_ptr<Source> source;
        if (topology.trainer(control.rank())) {
          source = make_resident_source(session.plan(), family->catalog(), control.rank(), 3);
        }
        Progress progress(ProgressMode::kNever, false);
        // The first update of a source compiles what needs no wire.
        session.update(source.get(), 3, true, progress);
        for (const bool verify : {false, true}) {
          std::vector<std::uint64_t> sent(session.plan().segments.size());
          std::vector<std::uint64_t> written(session.rank_plan().checks.size());
          const std::span<std::uint64_t> none;
          control.agreement.together([] {});
          calls.start();
          EXPECT_FALSE(session.pipeline().run(source.get(), {}, verify ? std::span(sent) : none,
                                              verify ? std::span(written) : none, progress));
          calls.counting = false;
          EXPECT_EQ(calls.synchronisations, 0);
          EXPECT_EQ(calls.copies, 0);
          EXPECT_EQ(calls.loops, 1);
          if (verify) expect_digests(control, session, sent, written);
        }
        expect_holds(session, control.rank(), model, synthetic_weights(model, 3));
      });
    }
  }
}

TEST(Waits, NoneWithoutAGpu) {
  // Over MPI nothing of CUDA is asked for, whatever the machine has.
  const naive::Model model = small_model(true);
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  for (const char* transport : {"mpi", "auto"}) {
    under_control(2, [&](Control& control) {
      calls.start();
      EXPECT_EQ(choose_wire(control, transport).wire, Wire::kMpi);
      const auto family = model.family();
      const Topology topology = topology_of(1, "tp=1");
      Session session(control, *family, topology, {});
      std::optional<MemorySource> source;
      if (control.rank() == 0) source.emplace(session.plan(), family->catalog(), 0, 3);
      Progress progress(ProgressMode::kNever, false);
      session.update(source ? &*source : nullptr, 3, true, progress);
      calls.counting = false;
      EXPECT_EQ(calls.synchronisations + calls.copies + calls.loops, 0);
      expect_holds(session, control.rank(), model, synthetic_weights(model, 3));
    });
  }
}

}  // namespace

}  // namespace weightcast
