#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "core/quantizer.hpp"

namespace weightcast {

class ResidentSource;

/// Where a trainer rank's weights are. All methods but `find_largest`, `use_scales`, `in_place` and
/// `resident`, which belong to the thread that talks to MPI, are called from one other thread.
class Source {
 public:
  virtual ~Source() = default;

  /// Says that `pack` will be called with these arguments, after the buckets that were begun before: the
  /// source may work on it from now on.
  virtual void begin(std::uint32_t /*bucket*/, std::byte* /*staging*/, std::span<std::uint64_t> /*digests*/) {
  }

  /// Raises `largest[s]` to the largest magnitude among what trainer number `trainer`, whose source this is,
  /// sends of the tensors of scope s of the plan. Where it takes long, calls `poll` again and
  /// again, which may throw.
  virtual void find_largest(std::int64_t trainer, std::span<float> largest,
                            const std::function<void()>& poll) = 0;

  /// The scales of the plan's scopes in the update that follows; they stay where they are until it has ended.
  void use_scales(std::span<const GlobalScale> scales) { scales_ = scales; }

  /// Fills `staging` with bucket `bucket` of the plan, and `digests` (numbered as Plan::digests) for every
  /// segment in it, from what was read (an empty span: no digests wanted), less the segments that `in_place`
  /// knows. When it throws, buckets that were begun are dropped.
  virtual void pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) = 0;

  /// Throws IoError when the weights may have changed while they were packed, after the last `pack` of an
  /// update.
  virtual void require_unchanged() const {}

  /// Forgets buckets that were begun and not packed; returns when nothing writes to their staging any more.
  virtual void drop() {}

  /// Where segment number `segment` lies without gaps in the source's own memory, to be sent from there; null
  /// for one that `pack` puts into staging. Only segments that travel in a message of their own may be in
  /// place.
  virtual std::byte* in_place(std::uint32_t segment) const = 0;

  /// This source when its weights are in the memory of the rank's GPU (cuda/resident_source.hpp): then
  /// buckets are packed there, and nothing above but `find_largest` and `use_scales` is called.
  virtual const ResidentSource* resident() const { return nullptr; }

 protected:
  std::span<const GlobalScale> scales() const { return scales_; }

 private:
  std::span<const GlobalScale> scales_;
};

/// Drops what was begun when an update ends early, so that nothing writes to staging afterwards.
class DropAtEnd {
 public:
  explicit DropAtEnd(Source& source) : source_(source) {}
  ~DropAtEnd() { source_.drop(); }
  DropAtEnd(const DropAtEnd&) = delete;
  DropAtEnd& operator=(const DropAtEnd&) = delete;

 private:
  Source& source_;
};

}  // namespace weightcast
