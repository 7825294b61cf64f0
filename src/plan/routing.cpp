#include "plan/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <numeric>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// A box of a tensor that a rank, or a group of ranks that are alike, needs or holds.
struct Claim {
  std::uint32_t tensor = 0;
  std::uint32_t who = 0;
  Box box;
};

void add_claims(const Parameter& parameter, std::size_t who, std::vector<Claim>& claims) {
  for (const Part& part : parameter.parts) {
    claims.push_back({part.tensor, static_cast<std::uint32_t>(who), part.box});
  }
}

void sort_by_tensor(std::vector<Claim>& claims) {
  std::stable_sort(claims.begin(), claims.end(),
                   [](const Claim& a, const Claim& b) { return a.tensor < b.tensor; });
}

/// Takes the claims on a tensor off the front.
std::span<const Claim> take_tensor(std::uint32_t tensor, std::span<const Claim>& claims) {
  const auto end =
      std::find_if(claims.begin(), claims.end(), [&](const Claim& claim) { return claim.tensor != tensor; });
  const auto count = static_cast<std::size_t>(end - claims.begin());
  const std::span<const Claim> front = claims.first(count);
  claims = claims.subspan(count);
  return front;
}

/// What coordinates need.
std::vector<Claim> needs_by_tensor(const Family& family, const EngineLayout& engine) {
  std::vector<Claim> needs;
  for (std::int64_t coordinate = 0; coordinate < engine.replica_ranks(); ++coordinate) {
    for (const Parameter& parameter : family.parameters(engine, engine_rank(engine, coordinate))) {
      add_claims(parameter, static_cast<std::size_t>(coordinate), needs);
    }
  }
  sort_by_tensor(needs);
  return needs;
}

/// What trainers hold. Those that hold the same are one group: a claim's `who`.
struct Holdings {
  std::vector<std::vector<std::int64_t>> groups;
  std::vector<Claim> claims;

  void add(const std::vector<TrainerTensor>& tensors, std::vector<std::int64_t> ranks) {
    for (const TrainerTensor& tensor : tensors) {
      if (!tensor.copy) add_claims(tensor.held, groups.size(), claims);
    }
    groups.push_back(std::move(ranks));
  }
};

Holdings holdings_by_tensor(const Family& family, const TrainerLayout& layout) {
  // By stage, expert-parallel and (expert-)tensor-parallel rank: what a rank holds depends on no more.
  std::map<std::array<std::int64_t, 2>, std::vector<std::int64_t>> dense;
  std::map<std::array<std::int64_t, 3>, std::vector<std::int64_t>> experts;
  for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) {
    const TrainerRank place = trainer_rank(layout, rank);
    dense[{place.pp, place.tp}].push_back(rank);
    experts[{place.pp, place.ep, place.etp}].push_back(rank);
  }
  Holdings holdings;
  for (const auto& [place, ranks] : dense) {
    holdings.add(family.trainer_dense(layout, place[0], place[1]), ranks);
  }
  for (const auto& [place, ranks] : experts) {
    const std::vector<TrainerTensor> tensors = family.trainer_experts(layout, place[0], place[2], place[1]);
    if (!tensors.empty()) require_one_stage(layout);
    holdings.add(tensors, ranks);
  }
  sort_by_tensor(holdings.claims);
  return holdings;
}

/// Sorted distinct edges of one axis, of the boxes of both lists.
template <typename Start, typename Count>
std::vector<std::int64_t> edges(std::span<const Claim> claims, std::span<const Claim> others, Start start,
                                Count count) {
  std::vector<std::int64_t> result;
  for (const std::span<const Claim> list : {claims, others}) {
    for (const Claim& claim : list) {
      result.push_back(claim.box.*start);
      result.push_back(claim.box.*start + claim.box.*count);
    }
  }
  std::sort(result.begin(), result.end());
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return result;
}

/// Gives equal sets the same number.
class Sets {
 public:
  std::uint32_t index(const std::vector<std::int64_t>& set) {
    const auto [found, fresh] = numbers_.emplace(set, static_cast<std::uint32_t>(sets_.size()));
    if (fresh) sets_.push_back(set);
    return found->second;
  }
  std::vector<std::vector<std::int64_t>> take() { return std::move(sets_); }

 private:
  std::map<std::vector<std::int64_t>, std::uint32_t> numbers_;
  std::vector<std::vector<std::int64_t>> sets_;
};

/// Who claims all of a cell.
void claimants(std::span<const Claim> claims, const Box& cell, std::vector<std::int64_t>& who) {
  who.clear();
  for (const Claim& claim : claims) {
    if (claim.box.contains(cell)) who.push_back(claim.who);
  }
  std::sort(who.begin(), who.end());
  who.erase(std::unique(who.begin(), who.end()), who.end());
}

/// Appends the pieces of one tensor; `holders` numbers sets of holding groups.
void cut_tensor(std::span<const Claim> needs, std::span<const Claim> holds, Sets& destinations, Sets& holders,
                std::vector<Piece>& pieces) {
  const std::vector<std::int64_t> rows = edges(needs, holds, &Box::row, &Box::rows);
  const std::vector<std::int64_t> cols = edges(needs, holds, &Box::col, &Box::cols);
  std::vector<std::int64_t> who;
  for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
    for (std::size_t c = 0; c + 1 < cols.size(); ++c) {
      const Box cell{rows[r], rows[r + 1] - rows[r], cols[c], cols[c + 1] - cols[c]};
      claimants(needs, cell, who);
      if (who.empty()) continue;
      const std::uint32_t to = destinations.index(who);
      claimants(holds, cell, who);
      pieces.push_back({needs.front().tensor, to, holders.index(who), cell});
    }
  }
}

/// The trainers of each set of groups.
std::vector<std::vector<std::int64_t>> trainers_of(const std::vector<std::vector<std::int64_t>>& sets,
                                                   const Holdings& holdings) {
  std::vector<std::vector<std::int64_t>> result;
  for (const auto& set : sets) {
    std::vector<std::int64_t>& trainers = result.emplace_back();
    for (const std::int64_t group : set) {
      const auto& ranks = holdings.groups[static_cast<std::size_t>(group)];
      trainers.insert(trainers.end(), ranks.begin(), ranks.end());
    }
    std::sort(trainers.begin(), trainers.end());
    trainers.erase(std::unique(trainers.begin(), trainers.end()), trainers.end());
  }
  return result;
}

}  // namespace

std::int64_t piece_row_bytes(const Catalog& catalog, const Piece& piece) {
  return piece.box.cols * dtype_bytes(catalog[piece.tensor].dtype);
}

std::int64_t piece_bytes(const Catalog& catalog, const Piece& piece) {
  return piece.box.rows * piece_row_bytes(catalog, piece);
}

Piece take_rows(Piece& piece, std::int64_t rows) {
  Piece top = piece;
  top.box.rows = rows;
  piece.box.row += rows;
  piece.box.rows -= rows;
  return top;
}

Routing route_pieces(const Family& family, const Topology& topology, FanOut fan_out) {
  const EngineLayout& engine = topology.engine;
  const std::vector<Claim> needs = needs_by_tensor(family, engine);
  Holdings holdings;
  if (topology.trainer_layout) holdings = holdings_by_tensor(family, *topology.trainer_layout);
  Sets destinations;
  Sets holders;
  Routing routing;
  std::span<const Claim> needed = needs;
  std::span<const Claim> held = holdings.claims;
  for (std::uint32_t tensor = 0; tensor < family.catalog().size(); ++tensor) {
    const std::span<const Claim> by_trainers = take_tensor(tensor, held);
    const std::span<const Claim> by_ranks = take_tensor(tensor, needed);
    if (!by_ranks.empty()) cut_tensor(by_ranks, by_trainers, destinations, holders, routing.pieces);
  }
  routing.destinations = destinations.take();
  if (topology.trainer_layout) {
    routing.holders = trainers_of(holders.take(), holdings);
  } else {
    std::vector<std::int64_t>& all =
        routing.holders.emplace_back(static_cast<std::size_t>(topology.trainers));
    std::iota(all.begin(), all.end(), 0);
  }
  if (fan_out == FanOut::kAll) {
    std::vector<std::int64_t> everyone(static_cast<std::size_t>(engine.replica_ranks()));
    std::iota(everyone.begin(), everyone.end(), 0);
    routing.destinations.assign(1, everyone);
    for (Piece& piece : routing.pieces) piece.destinations = 0;
  }
  return routing;
}

}  // namespace weightcast
