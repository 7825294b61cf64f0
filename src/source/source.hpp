#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "core/quantizer.hpp"

namespace weightcast {

class HostSource;
class ResidentSource;

/// Where a trainer rank's weights are: in host memory or in files (HostSource), or in the memory of its GPU
/// (cuda/resident_source.hpp). What is here belongs to the thread that talks to MPI.
class Source {
 public:
  virtual ~Source() = default;

  /// Raises `largest[s]` to the largest magnitude among what trainer number `trainer`, whose source this is,
  /// sends of the tensors of scope s of the plan. Where it takes long, calls `poll` again and
  /// again, which may throw.
  virtual void find_largest(std::int64_t trainer, std::span<float> largest,
                            const std::function<void()>& poll) = 0;

  /// The scales of the plan's scopes in the update that follows; they stay where they are until it has ended.
  void use_scales(std::span<const GlobalScale> scales) { scales_ = scales; }

  /// Whether packing them is reading files.
  virtual bool reads_files() const { return false; }

  /// Throws IoError when the weights may have changed while they were packed, after the last bucket of an
  /// update.
  virtual void require_unchanged() const {}

  /// This source as what it is; the other is null.
  virtual HostSource* on_host() { return nullptr; }
  virtual const ResidentSource* resident() const { return nullptr; }

 protected:
  std::span<const GlobalScale> scales() const { return scales_; }

 private:
  std::span<const GlobalScale> scales_;
};

/// A bucket that a source on the host has begun to put into staging. It ends by itself: when it goes before
/// it was finished, nothing writes to its staging any more.
class BegunBucket {
 public:
  BegunBucket() = default;
  /// `staging` and `digests` as HostSource::begin().
  BegunBucket(HostSource& source, std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests)
      : source_(&source), bucket_(bucket), staging_(staging), digests_(digests) {}
  ~BegunBucket() { drop(); }
  BegunBucket(BegunBucket&& other) noexcept { swap(other); }
  BegunBucket& operator=(BegunBucket&& other) noexcept {
    drop();
    swap(other);
    return *this;
  }
  BegunBucket(const BegunBucket&) = delete;
  BegunBucket& operator=(const BegunBucket&) = delete;

  explicit operator bool() const { return source_ != nullptr; }

  /// Returns when staging and digests are filled. Throws what the source throws; the bucket is dropped then.
  void finish();

  void drop() noexcept;

 private:
  void swap(BegunBucket& other) noexcept {
    std::swap(source_, other.source_);
    std::swap(bucket_, other.bucket_);
    std::swap(staging_, other.staging_);
    std::swap(digests_, other.digests_);
  }

  HostSource* source_ = nullptr;
  std::uint32_t bucket_ = 0;
  std::byte* staging_ = nullptr;
  std::span<std::uint64_t> digests_;
};

/// Weights that the host reads. Buckets are begun and finished by one thread, which need not be the one that
/// talks to MPI.
class HostSource : public Source {
 public:
  HostSource* on_host() final { return this; }

  /// Begins to fill `staging` with bucket `bucket` of the plan, and `digests` (numbered as Plan::digests) for
  /// every segment in it, from what was read (an empty span: no digests wanted), less the segments that
  /// `in_place` knows. Several may be begun, which are finished in their order.
  BegunBucket begin(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
    begin_bucket(bucket, staging, digests);
    return {*this, bucket, staging, digests};
  }

  /// Where segment number `segment` lies without gaps in the source's own memory, to be sent from there; null
  /// for one that goes through staging.
  virtual std::byte* in_place(std::uint32_t /*segment*/) const { return nullptr; }

  // For BegunBucket.
  /// May do nothing, and leave all to finish_bucket().
  virtual void begin_bucket(std::uint32_t /*bucket*/, std::byte* /*staging*/,
                            std::span<std::uint64_t> /*digests*/) {}
  virtual void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) = 0;
  virtual void drop_bucket(std::uint32_t /*bucket*/) noexcept {}
};

inline void BegunBucket::finish() {
  source_->finish_bucket(bucket_, staging_, digests_);
  source_ = nullptr;
}

inline void BegunBucket::drop() noexcept {
  if (source_ != nullptr) source_->drop_bucket(bucket_);
  source_ = nullptr;
}

}  // namespace weightcast
