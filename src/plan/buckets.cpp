#include "plan/buckets.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/units.hpp"

namespace weightcast {

namespace {

// Below this a share of its own is not worth another root, and a tail not worth a split.
constexpr std::int64_t kSmallBytes = Limits::kLeastBucketBytes;

std::int64_t row_bytes(const Catalog& catalog, const Piece& piece) {
  return piece.box.cols * dtype_bytes(catalog[piece.tensor].dtype);
}

std::int64_t piece_bytes(const Catalog& catalog, const Piece& piece) {
  return piece.box.rows * row_bytes(catalog, piece);
}

/// Takes the first `rows` rows off a piece.
Piece take_rows(Piece& piece, std::int64_t rows) {
  Piece top = piece;
  top.box.rows = rows;
  piece.box.row += rows;
  piece.box.rows -= rows;
  return top;
}

/// The trainers that have least so far, in ascending order.
std::vector<std::size_t> least_loaded(const std::vector<std::int64_t>& load, std::size_t count) {
  std::vector<std::size_t> order(load.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return load[a] < load[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

/// Fills buckets of one root and one destination set.
class BucketFiller {
 public:
  BucketFiller(const Catalog& catalog, std::int64_t cap, std::vector<Segment>& segments,
               std::vector<Bucket>& buckets)
      : catalog_(catalog), cap_(cap), segments_(segments), buckets_(buckets) {}

  void open(std::uint32_t root, std::uint32_t destinations) {
    close();
    current_ = {root, destinations, static_cast<std::uint32_t>(segments_.size()), 0, 0};
  }

  void add(Piece piece) {
    while (!piece.box.empty()) {
      const std::int64_t offset = round_up(current_.bytes, kSegmentAlignment);
      const std::int64_t room = cap_ - offset;
      const std::int64_t row = row_bytes(catalog_, piece);
      const std::int64_t rows = std::min(piece.box.rows, std::max<std::int64_t>(0, room) / row);
      const bool worth_it = rows == piece.box.rows || rows * row >= kSmallBytes;
      if (rows > 0 && (worth_it || current_.bytes == 0)) {
        append(take_rows(piece, rows), offset);
      } else if (current_.bytes > 0) {
        next();
      } else {
        split_row(piece);
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

  void append(const Piece& piece, std::int64_t offset) {
    segments_.push_back({piece.tensor, piece.box, offset});
    current_.bytes = offset + piece_bytes(catalog_, piece);
    ++current_.segments;
  }

  /// A single row larger than a bucket is cut along its columns.
  void split_row(Piece& piece) {
    const std::int64_t cols = cap_ / dtype_bytes(catalog_[piece.tensor].dtype);
    Piece row = take_rows(piece, 1);
    while (!row.box.empty()) {
      Piece run = row;
      run.box.cols = std::min(cols, row.box.cols);
      row.box.col += run.box.cols;
      row.box.cols -= run.box.cols;
      append(run, 0);
      next();
    }
  }

  const Catalog& catalog_;
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

}  // namespace

std::vector<std::vector<Piece>> divide_among_trainers(const Catalog& catalog, const Routing& routing,
                                                      std::int64_t trainers) {
  std::vector<std::vector<const Piece*>> by_set(routing.destinations.size());
  for (const Piece& piece : routing.pieces) by_set[piece.destinations].push_back(&piece);

  std::vector<std::vector<Piece>> by_trainer(static_cast<std::size_t>(trainers));
  std::vector<std::int64_t> load(by_trainer.size(), 0);
  for (const auto& pieces : by_set) {
    const std::int64_t total = std::accumulate(
        pieces.begin(), pieces.end(), std::int64_t{0},
        [&](std::int64_t sum, const Piece* piece) { return sum + piece_bytes(catalog, *piece); });
    const std::int64_t shares = std::clamp<std::int64_t>(total / kSmallBytes, 1, trainers);
    const std::vector<std::size_t> owners = least_loaded(load, static_cast<std::size_t>(shares));
    std::int64_t share = 0;
    std::int64_t done = 0;
    const auto give = [&](const Piece& piece) {
      const std::size_t owner = owners[static_cast<std::size_t>(share)];
      by_trainer[owner].push_back(piece);
      load[owner] += piece_bytes(catalog, piece);
      done += piece_bytes(catalog, piece);
    };
    for (const Piece* whole : pieces) {
      Piece rest = *whole;
      while (!rest.box.empty()) {
        // Products of byte totals and trainer counts stay far below 2^63.
        const std::int64_t boundary = total * (share + 1) / shares;
        const std::int64_t rows = (boundary - done) / row_bytes(catalog, rest);
        if (share + 1 == shares || rows >= rest.box.rows) {
          give(rest);
          break;
        }
        if (rows > 0) give(take_rows(rest, rows));
        ++share;
      }
    }
  }
  return by_trainer;
}

void fill_buckets(const Catalog& catalog, const std::vector<std::vector<Piece>>& by_trainer, Plan& plan) {
  std::vector<std::vector<Bucket>> queues(by_trainer.size());
  for (std::size_t root = 0; root < by_trainer.size(); ++root) {
    std::vector<std::vector<const Piece*>> by_set(plan.destinations.size());
    for (const Piece& piece : by_trainer[root]) by_set[piece.destinations].push_back(&piece);
    BucketFiller filler(catalog, plan.limits.bucket_bytes, plan.segments, queues[root]);
    for (const std::uint32_t set : serving_order(plan, root, by_trainer.size())) {
      filler.open(static_cast<std::uint32_t>(root), set);
      for (const Piece* piece : by_set[set]) filler.add(*piece);
    }
    filler.close();
  }
  const std::size_t steps = std::transform_reduce(
      queues.begin(), queues.end(), std::size_t{0}, [](auto a, auto b) { return std::max(a, b); },
      [](const auto& queue) { return queue.size(); });
  for (std::size_t step = 0; step < steps; ++step) {
    for (const auto& queue : queues) {
      if (step < queue.size()) plan.buckets.push_back(queue[step]);
    }
  }
}

}  // namespace weightcast
