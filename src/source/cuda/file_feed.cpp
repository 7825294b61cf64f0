#include "source/cuda/file_feed.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace weightcast {

FileFeed::FileFeed(const Plan& plan, const RankPlan& rank_plan) : plan_(plan), rank_plan_(rank_plan) {
  for (const RankBucket& bucket : rank_plan.buckets) {
    if (bucket.root) buckets_.push_back(&bucket);
  }
  ring_ = PinnedBuffer(plan.staging_bytes_per_rank(), "reading files");
  for (std::int64_t i = 0; i < plan.limits.buffers; ++i) copied_.emplace_back(CudaEvent::Kind::kOrder);
  WEIGHTCAST_CUDA(cudaGetDevice(&device_));
  thread_ = std::jthread([this](const std::stop_token& stop) { work(stop); });
}

FileFeed::~FileFeed() = default;

void FileFeed::begin(HostSource& source, std::span<std::uint64_t> digests) {
  {
    const std::scoped_lock lock(mutex_);
    source_ = &source;
    digests_ = digests;
    read_ = enqueued_ = 0;
    reading_seconds_ = 0;
    failure_ = nullptr;
    abandoned_ = false;
    ++updates_;
  }
  changed_.notify_all();
}

void FileFeed::copy(std::size_t n, std::byte* slot, cudaStream_t stream, const std::function<void()>& poll) {
  using namespace std::chrono_literals;
  {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, 10ms, [&] { return read_ > n || failure_; })) {
      lock.unlock();
      poll();
      lock.lock();
    }
    if (failure_) return;
  }
  WEIGHTCAST_CUDA(cudaMemcpyAsync(slot, pinned(n),
                                  static_cast<std::size_t>(plan_.buckets[buckets_[n]->bucket].bytes),
                                  cudaMemcpyHostToDevice, stream));
  copied_[n % copied_.size()].record(stream);
  {
    const std::scoped_lock lock(mutex_);
    enqueued_ = n + 1;
  }
  changed_.notify_all();
}

void FileFeed::abandon() {
  {
    const std::scoped_lock lock(mutex_);
    abandoned_ = true;
  }
  changed_.notify_all();
}

std::exception_ptr FileFeed::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return ended_ == updates_; });
  return failure_;
}

void FileFeed::work(const std::stop_token& stop) {
  cudaSetDevice(device_);
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return updates_ > ended_; })) return;
    }
    std::exception_ptr failure;
    try {
      read_all(stop);
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::scoped_lock lock(mutex_);
      if (failure) failure_ = failure;
      ended_ = updates_;
    }
    changed_.notify_all();
  }
}

void FileFeed::read_all(const std::stop_token& stop) {
  std::vector<BegunBucket> buckets(copied_.size());  // by pinned buffer; they end with this function
  std::size_t begun = 0;
  for (std::size_t n = 0; n < buckets_.size(); ++n) {
    {
      std::unique_lock lock(mutex_);
      const auto may_go_on = [&] { return abandoned_ || enqueued_ + copied_.size() > n; };
      if (!changed_.wait(lock, stop, may_go_on) || abandoned_) return;
    }
    // This thread may wait: the one that fills the streams does not.
    if (n >= copied_.size()) WEIGHTCAST_CUDA(cudaEventSynchronize(copied_[n % copied_.size()].get()));
    const auto start = std::chrono::steady_clock::now();
    for (begun = std::max(begun, n); begun < buckets_.size() && (begun == n || has_room(begun)); ++begun) {
      buckets[begun % buckets.size()] = source_->begin(buckets_[begun]->bucket, pinned(begun), digests_);
    }
    buckets[n % buckets.size()].finish();
    fill_gaps(*buckets_[n], pinned(n));
    {
      const std::scoped_lock lock(mutex_);
      read_ = n + 1;
      reading_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    changed_.notify_all();
  }
}

bool FileFeed::has_room(std::size_t n) {
  {
    const std::scoped_lock lock(mutex_);
    if (enqueued_ + copied_.size() <= n) return false;
  }
  return n < copied_.size() || copied_[n % copied_.size()].reached();
}

void FileFeed::fill_gaps(const RankBucket& bucket, std::byte* to) const {
  for (const Message& message : rank_plan_.messages_of(bucket)) {
    if (message.segment == Message::kNone) continue;
    const std::byte* in_place = source_->in_place(message.segment);
    if (in_place == nullptr) continue;
    std::memcpy(to + message.staging, in_place, static_cast<std::size_t>(message.bytes));
  }
}

}  // namespace weightcast
