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
    // Scales go where their codes go.
    if (part.form.plane == Plane::kScales) continue;
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

/// Learns from what a rank keeps which tensors are quantised, and to what, and of which it keeps −e^x.
void learn_forms(const Parameter& parameter, const EngineLayout& engine, std::vector<WireForm>& wire) {
  for (const Part& part : parameter.parts) {
    if (part.negated_exp) wire[part.tensor].negated_exp = true;
    if (part.form.plane == Plane::kValues) continue;
    const QuantScheme scheme = engine.quantizer.value().scheme;
    WireForm& form = wire[part.tensor];
    form.unit_rows = unit_rows(scheme);
    form.unit_cols = unit_cols(scheme);
    form.whole_rows = scheme == QuantScheme::kFp8Channel;
    if (has_global(scheme)) form.scope = part.scope;
    if (!form.kept) form.kept.emplace();
    if (part.form.plane == Plane::kCodes) {
      form.kept->codes = part.form;
    } else {
      form.kept->scales = part.form;
      form.kept->scale_bytes = dtype_bytes(parameter.dtype);
    }
  }
}

/// What coordinates need, by tensor.
std::vector<Claim> needs_by_tensor(const Family& family, const EngineLayout& engine,
                                   std::vector<WireForm>& wire) {
  std::vector<Claim> needs;
  for (std::int64_t coordinate = 0; coordinate < engine.replica_ranks(); ++coordinate) {
    for (const Parameter& parameter : family.parameters(engine, engine_rank(engine, coordinate))) {
      add_claims(parameter, static_cast<std::size_t>(coordinate), needs);
      learn_forms(parameter, engine, wire);
    }
  }
  sort_by_tensor(needs);
  return needs;
}

/// Throws UsageError, naming `option`, unless a trainer that holds `box` holds all that its scales follow
/// from.
void require_whole_blocks(const Tensor& tensor, const WireForm& form, const Box& box,
                          const std::string& option) {
  const bool whole_row = box.cols == tensor.shape.cols() || !form.whole_rows;
  if (whole_row && !cuts_unit(box.row, box.rows, tensor.shape.rows(), form.unit_rows) &&
      !cuts_unit(box.col, box.cols, tensor.shape.cols(), form.unit_cols)) {
    return;
  }
  const std::string block =
      form.whole_rows ? "rows" : fmt::format("blocks of {} × {}", form.unit_rows, form.unit_cols);
  throw UsageError(fmt::format(
      "{}: a trainer holds {} of {} {}, but --quantize needs whole {} from one trainer; divide the trainers "
      "otherwise or leave --quantize out",
      option, box.to_string(), tensor.name, tensor.shape.to_string(), block));
}

/// Gives the scopes that tensors name their numbers.
std::vector<std::uint32_t> number_scopes(std::vector<WireForm>& wire) {
  std::vector<std::uint32_t> scopes;
  for (const WireForm& form : wire) {
    if (form.scope != WireForm::kNoScope) scopes.push_back(form.scope);
  }
  std::sort(scopes.begin(), scopes.end());
  scopes.erase(std::unique(scopes.begin(), scopes.end()), scopes.end());
  for (WireForm& form : wire) {
    if (form.scope == WireForm::kNoScope) continue;
    const auto found = std::lower_bound(scopes.begin(), scopes.end(), form.scope);
    form.scope = static_cast<std::uint32_t>(found - scopes.begin());
  }
  return scopes;
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

/// The same of trainers that have said it themselves.
Holdings holdings_by_tensor(const std::vector<std::vector<Holding>>& of_trainers) {
  std::map<std::vector<Holding>, std::vector<std::int64_t>> alike;
  for (std::size_t trainer = 0; trainer < of_trainers.size(); ++trainer) {
    alike[of_trainers[trainer]].push_back(static_cast<std::int64_t>(trainer));
  }
  Holdings holdings;
  for (const auto& [boxes, trainers] : alike) {
    const auto who = static_cast<std::uint32_t>(holdings.groups.size());
    for (const Holding& held : boxes) holdings.claims.push_back({held.tensor, who, held.box});
    holdings.groups.push_back(trainers);
  }
  sort_by_tensor(holdings.claims);
  return holdings;
}

/// Throws InputError for the first piece that nobody holds.
void require_held(const Catalog& catalog, const Routing& routing) {
  for (const Piece& piece : routing.pieces) {
    if (!routing.holders[piece.holders].empty()) continue;
    throw InputError(fmt::format("{} {}: no trainer has published {}; let every trainer publish its part",
                                 catalog[piece.tensor].name, catalog[piece.tensor].shape.to_string(),
                                 piece.box.to_string()));
  }
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

/// The claims on a tensor that reach over the rows from one edge to the next, from top to bottom: of many
/// experts in one tensor each band of rows has but a few.
class Sweep {
 public:
  explicit Sweep(std::span<const Claim> claims) : claims_(claims.begin(), claims.end()) {
    std::ranges::stable_sort(claims_, {}, [](const Claim& claim) { return claim.box.row; });
  }

  /// Those that `row`, which no call before has gone beyond, is in.
  std::span<const Claim> at(std::int64_t row) {
    std::erase_if(open_, [&](const Claim& claim) { return claim.box.row + claim.box.rows <= row; });
    for (; next_ < claims_.size() && claims_[next_].box.row <= row; ++next_) {
      if (claims_[next_].box.row + claims_[next_].box.rows > row) open_.push_back(claims_[next_]);
    }
    return open_;
  }

 private:
  std::vector<Claim> claims_;
  std::size_t next_ = 0;
  std::vector<Claim> open_;
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
  Sweep needing(needs);
  Sweep holding(holds);
  for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
    const std::span<const Claim> need = needing.at(rows[r]);
    const std::span<const Claim> hold = holding.at(rows[r]);
    if (need.empty()) continue;
    for (std::size_t c = 0; c + 1 < cols.size(); ++c) {
      const Box cell{rows[r], rows[r + 1] - rows[r], cols[c], cols[c + 1] - cols[c]};
      claimants(need, cell, who);
      if (who.empty()) continue;
      const std::uint32_t to = destinations.index(who);
      claimants(hold, cell, who);
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

Routing route_pieces(const Family& family, const Topology& topology, const Limits& limits) {
  const EngineLayout& engine = topology.engine;
  const Catalog& catalog = family.catalog();
  Routing routing;
  routing.wire.reserve(catalog.size());
  for (const Tensor& tensor : catalog.tensors()) {
    routing.wire.push_back({.element_bytes = dtype_bytes(tensor.dtype)});
  }
  const std::vector<Claim> needs = needs_by_tensor(family, engine, routing.wire);
  routing.scopes = number_scopes(routing.wire);
  Holdings holdings;
  if (topology.trainer_layout) holdings = holdings_by_tensor(family, *topology.trainer_layout);
  if (!topology.holdings.empty()) holdings = holdings_by_tensor(topology.holdings);
  Sets destinations;
  Sets holders;
  std::span<const Claim> needed = needs;
  std::span<const Claim> held = holdings.claims;
  for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
    const std::span<const Claim> by_trainers = take_tensor(tensor, held);
    const std::span<const Claim> by_ranks = take_tensor(tensor, needed);
    if (by_ranks.empty()) continue;
    WireForm& form = routing.wire[tensor];
    const std::size_t first = routing.pieces.size();
    cut_tensor(by_ranks, by_trainers, destinations, holders, routing.pieces);
    if (!form.kept) continue;
    for (const Claim& claim : by_trainers) {
      require_whole_blocks(catalog[tensor], form, claim.box,
                           topology.trainer_layout ? topology.trainer_layout->option : "--source");
    }
    // A rank that receives parts of rows cannot know what the scales of whole ones follow from.
    const std::int64_t cols = catalog[tensor].shape.cols();
    const bool parts_of_rows =
        form.whole_rows &&
        std::any_of(routing.pieces.begin() + static_cast<std::ptrdiff_t>(first), routing.pieces.end(),
                    [&](const Piece& piece) { return piece.box.cols != cols; });
    if (limits.quantize_at == QuantizeAt::kSource || parts_of_rows) form.kind = *form.kept;
  }
  routing.destinations = destinations.take();
  if (topology.trainer_layout || !topology.holdings.empty()) {
    routing.holders = trainers_of(holders.take(), holdings);
    if (!topology.holdings.empty()) require_held(catalog, routing);
  } else {
    std::vector<std::int64_t>& all =
        routing.holders.emplace_back(static_cast<std::size_t>(topology.trainers));
    std::iota(all.begin(), all.end(), 0);
  }
  if (limits.fan_out == FanOut::kAll) {
    std::vector<std::int64_t> everyone(static_cast<std::size_t>(engine.replica_ranks()));
    std::iota(everyone.begin(), everyone.end(), 0);
    routing.destinations.assign(1, everyone);
    for (Piece& piece : routing.pieces) piece.destinations = 0;
  }
  return routing;
}

}  // namespace weightcast
