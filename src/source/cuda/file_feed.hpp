#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "memory/device_buffer.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "source/source.hpp"
#include "sys/cuda.hpp"

namespace weightcast {

/// Brings buckets of a source on the host to the device: its thread fills a ring of pinned buffers, and waits
/// there until the device has copied what was in a buffer before. Reading, copying and sending overlap.
class FileFeed {
 public:
  /// `plan` and `rank_plan` must outlive the feed, which works for the current device.
  FileFeed(const Plan& plan, const RankPlan& rank_plan);
  ~FileFeed();
  FileFeed(const FileFeed&) = delete;
  FileFeed& operator=(const FileFeed&) = delete;

  /// Begins to read all buckets that this rank is the root of, in their order; digests as HostSource::begin.
  void begin(HostSource& source, std::span<std::uint64_t> digests);

  /// Puts a copy of root bucket number n of this update (counted from 0) to `slot` into the stream. Waits
  /// until it has been read, calling `poll`, which may throw. Once the source has failed it copies nothing.
  void copy(std::size_t n, std::byte* slot, cudaStream_t stream, const std::function<void()>& poll);

  /// The pinned buffers, one behind the other.
  std::span<std::byte> buffers() const { return {ring_.data(), static_cast<std::size_t>(ring_.bytes())}; }

  /// Seconds that the last update's reading took, without the waits for free buffers. At rest.
  double reading_seconds() const { return reading_seconds_; }

  /// Nothing more is copied in this update: what was not read yet stays unread.
  void abandon();

  /// Waits until the reading thread is at rest. Returns what the source threw in this update, or null.
  std::exception_ptr finish();

 private:
  void work(const std::stop_token& stop);
  void read_all(const std::stop_token& stop);
  /// Whether the device has copied what was in root bucket n's pinned buffer before.
  bool has_room(std::size_t n);
  std::byte* pinned(std::size_t n) const {
    return ring_.data() + static_cast<std::int64_t>(n % copied_.size()) * plan_.slot_bytes;
  }
  /// Copies the segments of a bucket that the source would send from its own place to a pinned buffer.
  void fill_gaps(const RankBucket& bucket, std::byte* to) const;

  const Plan& plan_;
  const RankPlan& rank_plan_;
  std::vector<const RankBucket*> buckets_;  ///< of the rank plan: those that this rank is the root of
  PinnedBuffer ring_;
  std::vector<CudaEvent> copied_;  ///< by pinned buffer
  int device_ = 0;

  HostSource* source_ = nullptr;
  std::span<std::uint64_t> digests_;
  double reading_seconds_ = 0;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::size_t read_ = 0;       ///< buckets of this update that have been read
  std::size_t enqueued_ = 0;   ///< and whose copies are in the stream
  std::uint64_t updates_ = 0;  ///< begun
  std::uint64_t ended_ = 0;
  bool abandoned_ = false;
  std::exception_ptr failure_;
  std::jthread thread_;  // last: it ends before what it uses
};

}  // namespace weightcast
