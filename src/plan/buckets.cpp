#include "plan/buckets.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/error.hpp"
#include "core/units.hpp"
#include "plan/steps.hpp"

namespace weightcast {

namespace {

/// Fills buckets of one root and one destination set.
class BucketFiller {
 public:
  BucketFiller(const Catalog& catalog, const std::vector<WireForm>& wire, std::int64_t cap,
               std::vector<Segment>& segments, std::vector<Bucket>& buckets)
      : catalog_(catalog), wire_(wire), cap_(cap), segments_(segments), buckets_(buckets) {}

  void open(std::uint32_t root, std::uint32_t destinations) {
    close();
    current_ = {root, destinations, static_cast<std::uint32_t>(segments_.size()), 0, 0};
  }

  void add(Piece piece) {
    while (!piece.box.empty()) {
      const std::int64_t offset = round_up(current_.bytes, kSegmentAlignment);
      const std::int64_t room = std::max<std::int64_t>(0, cap_ - offset);
      const std::int64_t rows = wire_[piece.tensor].rows_within(piece.box, room);
      // A tail below this is not worth a split.
      const bool worth_it = rows == piece.box.rows || bytes_of_rows(piece, rows) >= Limits::kLeastBucketBytes;
      if (rows > 0 && (worth_it || current_.bytes == 0)) {
        append(take_rows(piece, rows), offset);
      } else if (current_.bytes > 0) {
        next();
      } else {
        split_rows(piece);
      }
    }
  }

  void close() {
    if (current_.bytes > 0) buckets_.push_back(current_);
    current_.bytes = 0;
    current_.segments = 0;
  }

 private:
  void next() {
    close();
    current_.first_segment = static_cast<std::uint32_t>(segments_.size());
  }

  std::int64_t bytes_of_rows(const Piece& piece, std::int64_t rows) const {
    Box box = piece.box;
    box.rows = rows;
    return wire_[piece.tensor].bytes(box);
  }

  void append(const Piece& piece, std::int64_t offset) {
    segments_.push_back({piece.tensor, piece.box, offset});
    current_.bytes = offset + bytes_of_rows(piece, piece.box.rows);
    ++current_.segments;
  }

  /// A single row, or the rows of a block, larger than a bucket are cut along their columns.
  void split_rows(Piece& piece) {
    const WireForm& form = wire_[piece.tensor];
    if (form.whole_rows) {
      Box row = piece.box;
      row.rows = 1;
      throw_too_small(piece, form.bytes(row));
    }
    Piece rows = take_rows(piece, std::min(form.unit_rows, piece.box.rows));
    Box unit = rows.box;
    unit.cols = std::min(form.unit_cols, rows.box.cols);
    // With the gap before the scales counted each time.
    const std::int64_t cols = cap_ / form.bytes(unit) * unit.cols;
    if (cols == 0) throw_too_small(piece, form.bytes(unit));
    while (!rows.box.empty()) {
      Piece run = rows;
      run.box.cols = std::min(cols, rows.box.cols);
      rows.box.col += run.box.cols;
      rows.box.cols -= run.box.cols;
      append(run, 0);
      next();
    }
  }

  [[noreturn]] void throw_too_small(const Piece& piece, std::int64_t least) const {
    throw UsageError(
        fmt::format("--bucket-size {}: what has one scale of {} takes {} and is not divided; the least is {}",
                    format_bytes(cap_), catalog_[piece.tensor].name, format_bytes(least), least));
  }

  const Catalog& catalog_;
  const std::vector<WireForm>& wire_;
  std::int64_t cap_;
  std::vector<Segment>& segments_;
  std::vector<Bucket>& buckets_;
  Bucket current_;
};

/// The order in which a root serves the destination sets: small sets first, and among sets of one size each
/// root begins at another one.
std::vector<std::uint32_t> serving_order(const Plan& plan, std::size_t root, std::size_t roots) {
  std::vector<std::uint32_t> order(plan.destinations.size());
  std::iota(order.begin(), order.end(), 0u);
  const auto members = [&](std::uint32_t set) { return plan.destinations[set].size(); };
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return std::tie(plan.destinations[a]) < std::tie(plan.destinations[b]);
  });
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return members(a) < members(b); });
  for (auto begin = order.begin(); begin != order.end();) {
    const auto end =
        std::find_if(begin, order.end(), [&](std::uint32_t set) { return members(set) != members(*begin); });
    const auto count = static_cast<std::size_t>(end - begin);
    std::rotate(begin, begin + static_cast<std::ptrdiff_t>(root * count / roots % count), end);
    begin = end;
  }
  return order;
}

/// Among sets of one size, one bucket of each in turn, so that a link is never long without its share.
void take_turns(const Plan& plan, std::vector<Bucket>& queue) {
  std::vector<std::size_t> taken(plan.destinations.size(), 0);
  struct Turn {
    std::size_t members;
    std::size_t turn;
    Bucket bucket;
  };
  std::vector<Turn> turns;
  turns.reserve(queue.size());
  for (const Bucket& bucket : queue) {
    turns.push_back({plan.destinations[bucket.destinations].size(), taken[bucket.destinations]++, bucket});
  }
  std::stable_sort(turns.begin(), turns.end(), [](const Turn& a, const Turn& b) {
    return std::tie(a.members, a.turn) < std::tie(b.members, b.turn);
  });
  std::transform(turns.begin(), turns.end(), queue.begin(), [](const Turn& turn) { return turn.bucket; });
}

/// Throws UsageError where there would be more buckets than a plan is to keep in memory: a file of few
/// numbers may speak of a model of any size.
void require_countable(const std::vector<std::vector<Piece>>& by_trainer, const Plan& plan) {
  constexpr double kMostBuckets = 1 << 24;
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  double bytes = 0;  // approximately, because a sum may be beyond whole numbers
  for (const std::vector<Piece>& pieces : by_trainer) {
    for (const Piece& piece : pieces) bytes += static_cast<double>(plan.wire[piece.tensor].bytes(piece.box));
  }
  const double least = bytes / kMostBuckets;
  if (static_cast<double>(plan.limits.bucket_bytes) >= least) return;
  throw UsageError(
      fmt::format("--bucket-size {}: too small for an update of {:.3g} bytes, which would take more than {} "
                  "buckets; {} is enough",
                  format_bytes(plan.limits.bucket_bytes), bytes, static_cast<std::int64_t>(kMostBuckets),
                  format_bytes(round_up(static_cast<std::int64_t>(least) + 1, kMiB))));
}

}  // namespace

void fill_buckets(const Catalog& catalog, const std::vector<std::vector<Piece>>& by_trainer, Plan& plan) {
  require_countable(by_trainer, plan);
  std::vector<std::vector<Bucket>> queues(by_trainer.size());
  for (std::size_t root = 0; root < by_trainer.size(); ++root) {
    std::vector<std::vector<const Piece*>> by_set(plan.destinations.size());
    for (const Piece& piece : by_trainer[root]) by_set[piece.destinations].push_back(&piece);
    BucketFiller filler(catalog, plan.wire, plan.limits.bucket_bytes, plan.segments, queues[root]);
    for (const std::uint32_t set : serving_order(plan, root, by_trainer.size())) {
      filler.open(static_cast<std::uint32_t>(root), set);
      for (const Piece* piece : by_set[set]) filler.add(*piece);
    }
    filler.close();
    take_turns(plan, queues[root]);
  }
  plan.buckets = order_in_steps(plan, queues);
}

}  // namespace weightcast
