#include "plan/division.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "core/units.hpp"
#include "plan/plan.hpp"

namespace weightcast {

namespace {

using Trainers = std::vector<std::int64_t>;

/// Those of some trainers that have least so far, in ascending order.
std::vector<std::size_t> least_loaded(const std::vector<std::int64_t>& load, const Trainers& of,
                                      std::size_t count) {
  std::vector<std::size_t> order(of.begin(), of.end());
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return load[a] < load[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

/// The pieces of each trainer, and how many bytes it has.
struct Division {
  std::vector<std::vector<Piece>> by_trainer;
  std::vector<std::int64_t> load;

  explicit Division(std::int64_t trainers)
      : by_trainer(static_cast<std::size_t>(trainers)), load(by_trainer.size(), 0) {}

  void give(const Catalog& catalog, std::size_t owner, const Piece& piece) {
    by_trainer[owner].push_back(piece);
    load[owner] += piece_bytes(catalog, piece);
  }
};

/// Equal runs of bytes, one for each of `among`, of the pieces of one set.
void divide_by_bytes(const Catalog& catalog, const std::vector<WireForm>& wire,
                     const std::vector<const Piece*>& pieces, const Trainers& among, Division& division) {
  if (among.empty()) {
    throw InternalError(fmt::format("no trainer holds {} of tensor {}", pieces.front()->box.to_string(),
                                    catalog[pieces.front()->tensor].name));
  }
  const std::int64_t total = std::accumulate(
      pieces.begin(), pieces.end(), std::int64_t{0},
      [&](std::int64_t sum, const Piece* piece) { return sum + piece_bytes(catalog, *piece); });
  const auto most = static_cast<std::int64_t>(among.size());
  // Below that a share of its own is not worth another root.
  const std::int64_t shares = std::clamp<std::int64_t>(total / Limits::kLeastBucketBytes, 1, most);
  const std::vector<std::size_t> owners =
      least_loaded(division.load, among, static_cast<std::size_t>(shares));
  std::int64_t share = 0;
  std::int64_t done = 0;
  const auto give = [&](const Piece& piece) {
    division.give(catalog, owners[static_cast<std::size_t>(share)], piece);
    done += piece_bytes(catalog, piece);
  };
  for (const Piece* whole : pieces) {
    Piece rest = *whole;
    while (!rest.box.empty()) {
      // Products of byte totals and trainer counts stay far below 2^63.
      const std::int64_t boundary = total * (share + 1) / shares;
      const std::int64_t unit = wire[rest.tensor].unit_rows;
      const std::int64_t rows = (boundary - done) / piece_row_bytes(catalog, rest) / unit * unit;
      if (share + 1 == shares || rows >= rest.box.rows) {
        give(rest);
        break;
      }
      if (rows > 0) give(take_rows(rest, rows));
      ++share;
    }
  }
}

/// Trainer t of n has rows [t·R/n, (t+1)·R/n) of every tensor of R rows.
void divide_by_rows(const Catalog& catalog, const std::vector<WireForm>& wire,
                    const std::vector<const Piece*>& pieces, Division& division) {
  const auto trainers = static_cast<std::int64_t>(division.by_trainer.size());
  for (const Piece* whole : pieces) {
    const std::int64_t rows = catalog[whole->tensor].shape.rows();
    for (std::int64_t trainer = 0; trainer < trainers; ++trainer) {
      const std::int64_t first = trainer * rows / trainers;
      if (const std::int64_t unit = wire[whole->tensor].unit_rows; first % unit != 0) {
        throw UsageError(fmt::format(
            "--source-split row: row {} of {} {} divides a block of {} rows between two trainers, "
            "which --quantize needs whole; choose another split or other --trainers",
            first, catalog[whole->tensor].name, catalog[whole->tensor].shape.to_string(), unit));
      }
      Piece part = *whole;
      part.box = part.box.intersect(
          {first, (trainer + 1) * rows / trainers - first, 0, catalog[whole->tensor].shape.cols()});
      if (!part.box.empty()) division.give(catalog, static_cast<std::size_t>(trainer), part);
    }
  }
}

/// Trainer t of n has experts [t·E/n, (t+1)·E/n) of every layer; the rest is divided by bytes.
void divide_by_experts(const Catalog& catalog, const std::vector<WireForm>& wire,
                       const std::vector<const Piece*>& pieces, const Trainers& among, std::int64_t experts,
                       Division& division) {
  const auto trainers = static_cast<std::int64_t>(division.by_trainer.size());
  std::vector<const Piece*> others;
  for (const Piece* piece : pieces) {
    const std::int64_t expert = catalog[piece->tensor].expert;
    if (expert == Tensor::kNone) {
      others.push_back(piece);
    } else {
      division.give(catalog, static_cast<std::size_t>(expert * trainers / experts), *piece);
    }
  }
  if (!others.empty()) divide_by_bytes(catalog, wire, others, among, division);
}

std::int64_t count_experts(const Catalog& catalog) {
  std::int64_t experts = 0;
  for (const Tensor& tensor : catalog.tensors()) {
    experts = std::max(experts, tensor.expert + 1);
  }
  return experts;
}

}  // namespace

std::vector<std::vector<Piece>> divide_among_trainers(const Catalog& catalog, const Routing& routing,
                                                      std::int64_t trainers, SourceSplit split) {
  // By destinations, then by who holds them.
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<const Piece*>> by_set;
  for (const Piece& piece : routing.pieces) by_set[{piece.destinations, piece.holders}].push_back(&piece);
  Division division(trainers);
  const std::int64_t experts = split == SourceSplit::kExpert ? count_experts(catalog) : 0;
  for (const auto& [sets, pieces] : by_set) {
    const Trainers& holders = routing.holders[sets.second];
    switch (split) {
      case SourceSplit::kCatalog:
        divide_by_bytes(catalog, routing.wire, pieces, holders, division);
        break;
      case SourceSplit::kRow:
        divide_by_rows(catalog, routing.wire, pieces, division);
        break;
      case SourceSplit::kExpert:
        divide_by_experts(catalog, routing.wire, pieces, holders, experts, division);
        break;
    }
  }
  return std::move(division.by_trainer);
}

}  // namespace weightcast
