#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "session/parameter_window.hpp"

namespace weightcast {

/// Brings one rank's parameters through a window: which bucket may be received when, and which tensor is
/// whole and handed over after which bucket.
///
/// A bucket waits while the window's limit has no room for it, but only if room can come: the engine has not
/// yet taken a tensor that was handed over, or another bucket is under way. Otherwise it goes past the limit,
/// because nothing would ever make room. So the window holds at most the limit or, where that is more, what
/// has arrived of unfinished tensors and one bucket.
class Handover {
 public:
  /// `parameters[p]` is the memory of parameter p of the rank plan. All references must outlive this. Throws
  /// UsageError for a parameter of the window that would be quantised.
  Handover(const Plan& plan, const Catalog& catalog, const RankPlan& rank_plan,
           std::span<std::byte* const> parameters, ParameterWindow& window);

  /// An update begins.
  void begin();

  // Of the thread that receives:

  /// Looks at what the engine has taken. Throws as ParameterWindow::taken().
  void look();
  /// Whether there is room for bucket k of the rank plan, as look() has found it.
  bool has_room(std::size_t k) const;
  /// Bucket k is about to be received. Throws as ParameterWindow::reserve().
  void start(std::size_t k);
  /// Whether the engine has taken all that there was in the buckets that were started.
  bool is_over() const;

  // Of the thread that unpacks:

  /// Bucket k, in the rank plan's order, is where it belongs. Hands over the tensors that are whole with it.
  /// `written` are the digests of the bucket's checks and `expected` those of the plan; without verification
  /// both are empty. Throws VerifyError naming what arrived wrong; nothing of it is handed over.
  void arrived(std::size_t k, std::span<const std::uint64_t> written,
               std::span<const std::uint64_t> expected);

 private:
  /// A run of the window's memory that a bucket writes.
  struct Range {
    std::byte* address = nullptr;
    std::int64_t bytes = 0;
  };

  struct BucketOfWindow {
    std::int64_t room = 0;  ///< bytes that it takes up in the window
    std::vector<Range> ranges;
  };

  struct TensorOfWindow {
    std::int64_t bytes = 0;
    std::int64_t room = 0;  ///< bytes that it takes up, as its buckets were counted
  };

  const Plan& plan_;
  const Catalog& catalog_;
  const RankPlan& rank_plan_;
  ParameterWindow& window_;
  std::vector<std::optional<std::uint32_t>> tensor_of_;  ///< by parameter: the window's number
  std::vector<TensorOfWindow> tensors_;                  ///< by the window's number
  std::vector<BucketOfWindow> buckets_;                  ///< by bucket of the rank plan

  mutable std::mutex mutex_;
  std::vector<std::int64_t>
      missing_;                       ///< by the window's number: bytes that have not arrived; the unpacker's
  std::vector<std::int64_t> handed_;  ///< room of the tensors that were handed over, in their order
  std::size_t taken_ = 0;             ///< how many of these have been taken
  std::int64_t in_use_ = 0;           ///< room of the buckets that were started, less what has been taken
  std::int64_t under_way_ = 0;        ///< of it, that of the buckets that have not arrived
};

}  // namespace weightcast
