#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/shape.hpp"
#include "model/family.hpp"
#include "plan/topology.hpp"
#include "plan/wire_form.hpp"

namespace weightcast {

/// Whether a rank receives what it needs, or everybody everything.
enum class FanOut : std::uint8_t { kNeeded, kAll };

/// Which side quantises what the engine keeps quantised. Both give the same bits; at the source fewer bytes
/// travel. Where a rank receives only some of the values that a scale follows from, the source quantises in
/// any case.
enum class QuantizeAt : std::uint8_t { kSource, kDestination };

/// The limits that the user sets.
struct Limits {
  static constexpr std::int64_t kLeastBucketBytes = 64 << 10;

  std::int64_t bucket_bytes = std::int64_t{256} << 20;  ///< strict cap of a bucket
  std::int64_t buffers = 3;                             ///< staging buffers of a rank
  FanOut fan_out = FanOut::kNeeded;
  QuantizeAt quantize_at = QuantizeAt::kSource;
};

/// A box of one tensor inside a bucket, in its wire form: row-major without gaps from `offset` on. No rank
/// needs only a part of it.
struct Segment {
  std::uint32_t tensor = 0;
  Box box;
  std::int64_t offset = 0;
};

/// A size-capped run of staging bytes that travels along one route.
struct Bucket {
  std::uint32_t root = 0;          ///< trainer
  std::uint32_t destinations = 0;  ///< index into Plan::destinations
  std::uint32_t first_segment = 0;
  std::uint32_t segments = 0;
  std::int64_t bytes = 0;  ///< from the first byte of the first segment to the last of the last
};

/// Bytes that a rank sends and receives, padding between segments included. Bytes that a colocated rank hands
/// to itself count as neither.
struct Traffic {
  std::int64_t sent = 0;
  std::int64_t received = 0;
  std::int64_t buckets = 0;  ///< that the rank takes part in, as root, destination or both
};

/// The same immutable object on every rank: what travels from whom to whom, in which order. What one rank has
/// to do for it is its rank plan (rank_plan.hpp).
struct Plan {
  Topology topology;
  Limits limits;

  /// Sets of coordinates in a replica (pp rank × tp + tp rank), ascending. A route is a root and one of
  /// these; all replicas are served alike.
  std::vector<std::vector<std::int64_t>> destinations;
  std::vector<Segment> segments;
  std::vector<Bucket> buckets;  ///< in the global order that every rank walks
  std::vector<WireForm> wire;   ///< by tensor
  /// Of the scales that quantised tensors share among themselves: the first tensor of each, ascending.
  std::vector<std::uint32_t> scopes;

  std::int64_t slot_bytes = 0;  ///< size of one staging buffer: the largest planned bucket
  std::uint64_t hash = 0;       ///< of the inputs and of everything above

  std::int64_t segment_bytes(const Segment& segment) const { return wire[segment.tensor].bytes(segment.box); }

  /// How many digests there are: digest s is of the values or codes of segment s, and with a quantiser digest
  /// segments.size() + s is of its scales.
  std::size_t digests() const { return segments.size() * (topology.engine.quantizer ? 2 : 1); }
  const Segment& segment_of_digest(std::uint32_t number) const { return segments[number % segments.size()]; }

  /// World ranks that receive a bucket of destination set `set`, ascending.
  std::vector<std::int64_t> destination_ranks(std::uint32_t set) const;
  bool receives(std::uint32_t set, std::int64_t world_rank) const;

  /// Distinct (root, destinations) pairs.
  std::int64_t routes() const;
  /// Whether a rank other than the root receives it.
  bool travels(const Bucket& bucket) const;
  /// Of the buckets that travel.
  std::int64_t wire_bytes() const;
  std::int64_t staging_bytes_per_rank() const { return limits.buffers * slot_bytes; }
  /// Of every world rank.
  std::vector<Traffic> traffic() const;
};

/// Segments begin at multiples of this in a bucket, so that vector loads are aligned whatever the dtypes.
inline constexpr std::int64_t kSegmentAlignment = 256;

/// The least size of a segment that is worth a message of its own (rank_plan.hpp).
inline constexpr std::int64_t kDirectBytes = 256 << 10;

/// Plans an update of `family`'s model: a pure function of its arguments. Cuts every tensor where some rank's
/// box begins or ends, groups the pieces by the set of ranks that need them, divides each group among the
/// trainers by bytes, packs each trainer's share of a group into buckets and interleaves the roots. Throws
/// UsageError for limits out of range and for layouts that do not divide the model, InternalError when a byte
/// would travel twice or not at all.
Plan make_plan(const Family& family, const Topology& topology, const Limits& limits);

/// The plan as JSON: totals, routes, every bucket; with `segments` every segment too.
nlohmann::ordered_json plan_json(const Plan& plan, const Catalog& catalog, bool segments);

}  // namespace weightcast
