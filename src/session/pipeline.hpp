#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <vector>

#include "report/progress.hpp"
#include "report/trace.hpp"
#include "session/stage_seconds.hpp"
#include "source/source.hpp"

namespace weightcast {

/// The heart of an update on one rank: pack, transport and unpack of neighbouring buckets overlap over a ring
/// of staging slots, which buckets take in turn (staging_slots.hpp); every rank walks the same global order,
/// so the earliest unfinished bucket can always move and nothing can deadlock. Two implementations: threads
/// and MPI (host_pipeline.hpp), streams and NCCL (cuda/cuda_pipeline.hpp).
class Pipeline {
 public:
  virtual ~Pipeline() = default;

  /// Makes what an update from this source needs, unless an earlier update has made it. Does not communicate.
  virtual void prepare(const Source* source) = 0;

  /// One update, prepared: `source` is null on a rank that is no trainer, `scales` are those of the plan's
  /// scopes. With verification `sent` (numbered as Plan::digests) and `written[i]` receive the digests of
  /// what is sent and of rank_plan.checks[i]; empty spans mean no digests.
  ///
  /// Returns null or, when a stage of this rank failed, what that stage threw. By then all buckets have
  /// travelled, whatever is in them, so that no other rank waits and the next update may follow; or the wire
  /// is broken on some rank, and all ranks have to call reopen_wire() first. Throws what `Control` throws
  /// when the job ends; after that the session is of no use.
  [[nodiscard]] virtual std::exception_ptr run(Source* source, std::span<const GlobalScale> scales,
                                               std::span<std::uint64_t> sent,
                                               std::span<std::uint64_t> written, Progress& progress) = 0;

  /// Whether the last update has left the wire broken on this rank.
  virtual bool wire_is_broken() const { return false; }
  /// Opens the wire anew on every rank when it is broken on some. Collective.
  virtual void reopen_wire() {}

  /// The buffers in host memory that a source on the host fills, one behind the other; on a GPU none before
  /// such a source has been prepared.
  virtual std::span<std::byte> host_staging() = 0;

  /// Index of the first move of rank_plan.padding whose region is not zero after a verified update, or -1.
  virtual std::int64_t first_dirty_padding() = 0;

  /// Of the last update.
  virtual StageSeconds stage_seconds() = 0;

  /// What happened when in the last update; `trace` begins to note it.
  virtual void trace() = 0;
  virtual std::vector<TraceSlice> slices() = 0;

  /// Overwrites the staging ring, so that nothing old in it can pass for new.
  virtual void poison(std::byte value) = 0;
};

}  // namespace weightcast
