#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace weightcast {

class ResidentSource;

/// Where a trainer rank's weights are.
class Source {
 public:
  virtual ~Source() = default;

  /// Fills `staging` with bucket `bucket` of the plan, and `digests[s]` for every segment number s in it,
  /// from what was read (an empty span: no digests wanted), less the segments that `in_place` knows. Called
  /// from one thread, not the one that talks to MPI.
  virtual void pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) = 0;

  /// Where segment number `segment` lies without gaps in the source's own memory, to be sent from there; null
  /// for one that `pack` puts into staging. Only segments that travel in a message of their own may be in
  /// place.
  virtual std::byte* in_place(std::uint32_t segment) const = 0;

  /// This source when its weights are in the memory of the rank's GPU (cuda/resident_source.hpp): then
  /// buckets are packed there, and neither of the above is called.
  virtual const ResidentSource* resident() const { return nullptr; }
};

}  // namespace weightcast
