#include "session/cuda/digest_results.hpp"

#include <cstring>
#include <limits>

#include "kernels/digest.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kWord = sizeof(std::uint64_t);
constexpr unsigned kNothingDirty = std::numeric_limits<unsigned>::max();

/// Of what this rank sends; a quantised segment has two.
std::int64_t most_sent_digests(const Plan& plan, const RankPlan& rank_plan) {
  std::int64_t segments = 0;
  for (const RankBucket& bucket : rank_plan.buckets) {
    if (bucket.root) segments += plan.buckets[bucket.bucket].segments;
  }
  return (plan.topology.engine.quantizer ? 2 : 1) * segments;
}

void enqueue_fill(const DeviceBuffer& buffer, int value, cudaStream_t stream) {
  if (buffer.bytes() == 0) return;
  WEIGHTCAST_CUDA(cudaMemsetAsync(buffer.data(), value, static_cast<std::size_t>(buffer.bytes()), stream));
}

void enqueue_to_host(const DeviceBuffer& from, std::byte* to, cudaStream_t stream) {
  if (from.bytes() == 0) return;
  WEIGHTCAST_CUDA(cudaMemcpyAsync(to, from.data(), static_cast<std::size_t>(from.bytes()),
                                  cudaMemcpyDeviceToHost, stream));
}

}  // namespace

DigestResults::DigestResults(const Plan& plan, const RankPlan& rank_plan)
    : checks_(rank_plan.checks.size()),
      sent_(most_sent_digests(plan, rank_plan) * kWord, "digests"),
      written_((static_cast<std::int64_t>(checks_) + 1) * kWord, "digests"),
      host_(sent_.bytes() + written_.bytes(), "digests") {}

void DigestResults::enqueue_clear(cudaStream_t stream) {
  enqueue_fill(sent_, 0, stream);
  enqueue_fill(written_, 0, stream);
}

void DigestResults::enqueue_clean(cudaStream_t stream) {
  WEIGHTCAST_CUDA(cudaMemsetAsync(dirty_padding(), 0xff, kWord, stream));
}

void DigestResults::enqueue_copy(cudaStream_t stream) {
  enqueue_to_host(sent_, host_.data(), stream);
  enqueue_to_host(written_, host_.data() + sent_.bytes(), stream);
}

void DigestResults::read_sent(const std::vector<SentDigest>& numbers, std::span<std::uint64_t> sent) const {
  const auto* words = reinterpret_cast<const std::uint64_t*>(host_.data());
  for (const SentDigest& digest : numbers) sent[digest.number] = 0;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    sent[numbers[i].number] += numbers[i].widened ? widened_digest(words[i]) : words[i];
  }
}

void DigestResults::read_written(std::span<std::uint64_t> written) const {
  std::memcpy(written.data(), host_written(), written.size_bytes());
}

std::int64_t DigestResults::first_dirty_padding() const {
  unsigned dirty = kNothingDirty;
  std::memcpy(&dirty, host_written() + static_cast<std::int64_t>(checks_) * kWord, sizeof dirty);
  return dirty == kNothingDirty ? -1 : std::int64_t{dirty};
}

}  // namespace weightcast
