#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <optional>
#include <sstream>
#include <string>

#include "control_world.hpp"
#include "session_cases.hpp"
#include "source/memory_source.hpp"

namespace {

/// Counts what the C++ code of this process allocates, on any thread. MPI's own library is C and is not
/// counted.
class AllocationCount {
 public:
  void start() {
    count_ = 0;
    counting_ = true;
  }
  void stop() { counting_ = false; }

  void note(std::size_t bytes) {
    if (!counting_) return;
    const std::size_t number = count_++;
    if (number < sizes_.size()) sizes_.at(number) = bytes;
  }

  std::size_t count() const { return count_; }
  std::string sizes() const {
    std::ostringstream text;
    for (std::size_t i = 0; i < std::min(count(), sizes_.size()); ++i) text << " " << sizes_.at(i);
    return text.str();
  }

 private:
  std::atomic<bool> counting_ = false;
  std::atomic<std::size_t> count_ = 0;
  std::array<std::size_t, 32> sizes_{};
};

AllocationCount allocations;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

void* allocate_or_null(std::size_t bytes) noexcept {
  allocations.note(bytes);
  return std::malloc(bytes == 0 ? 1 : bytes);
}

void* allocate_or_null(std::size_t bytes, std::align_val_t alignment) noexcept {
  allocations.note(bytes);
  const auto unit = static_cast<std::size_t>(alignment);
  return std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
}

template <typename... Alignment>
void* allocate(std::size_t bytes, Alignment... alignment) {
  if (void* memory = allocate_or_null(bytes, alignment...)) return memory;
  throw std::bad_alloc();
}

}  // namespace

// Every form: those of the standard library call the first, those of a sanitizer do not.
using Quiet = std::nothrow_t;
using Align = std::align_val_t;
void* operator new(std::size_t bytes) {
  return allocate(bytes);
}
void* operator new[](std::size_t bytes) {
  return allocate(bytes);
}
void* operator new(std::size_t bytes, Align align) {
  return allocate(bytes, align);
}
void* operator new[](std::size_t bytes, Align align) {
  return allocate(bytes, align);
}
void* operator new(std::size_t bytes, const Quiet& /*tag*/) noexcept {
  return allocate_or_null(bytes);
}
void* operator new[](std::size_t bytes, const Quiet& /*tag*/) noexcept {
  return allocate_or_null(bytes);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t /*bytes*/) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t /*bytes*/) noexcept {
  std::free(memory);
}
void operator delete(void* memory, Align /*align*/) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, Align /*align*/) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t /*bytes*/, Align /*align*/) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t /*bytes*/, Align /*align*/) noexcept {
  std::free(memory);
}
void operator delete(void* memory, const Quiet& /*tag*/) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, const Quiet& /*tag*/) noexcept {
  std::free(memory);
}

namespace weightcast {

namespace {

using namespace session_cases;
using mpi_test::under_control;

class UpdateAllocations : public ::testing::TestWithParam<bool> {};

TEST_P(UpdateAllocations, AreDoneAfterTheFirst) {
  const bool verify = GetParam();
  const naive::Model model = small_model(true);
  under_control(6, [&](Control& control) {
    const auto family = model.family();
    Limits limits;
    limits.bucket_bytes = Limits::kLeastBucketBytes;
    limits.buffers = 2;
    const Topology topology = topology_of(2, "tp=2,ep=2,replicas=2");
    Session session(control, *family, topology, limits);
    // A trainer has its weights before the update begins.
    std::array<std::optional<MemorySource>, 3> sources;
    for (std::size_t version = 0; version < sources.size(); ++version) {
      if (!topology.trainer(control.rank())) continue;
      sources[version].emplace(session.plan(), family->catalog(), control.rank(),
                               static_cast<std::int64_t>(version));
    }
    Progress progress(ProgressMode::kNever, false);
    const auto update = [&](std::size_t version) {
      session.update(sources[version] ? &*sources[version] : nullptr, static_cast<std::int64_t>(version),
                     verify, progress);
    };
    update(0);
    allocations.start();
    update(1);
    update(2);
    allocations.stop();
    EXPECT_EQ(allocations.count(), 0u) << "bytes:" << allocations.sizes();
    expect_holds(session, control.rank(), model, synthetic_weights(model, 2));
  });
}

INSTANTIATE_TEST_SUITE_P(Verify, UpdateAllocations, ::testing::Bool());

TEST(AllocationCounts, SeeWhatIsAllocated) {
  allocations.start();
  const auto number = std::make_unique<std::string>(100, 'x');
  allocations.stop();
  EXPECT_EQ(allocations.count(), 2u);
}

}  // namespace

}  // namespace weightcast
