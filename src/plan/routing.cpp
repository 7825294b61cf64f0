#include "plan/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// A box that one coordinate needs.
struct Need {
  std::uint32_t tensor = 0;
  std::uint32_t coordinate = 0;
  Box box;
};

std::vector<Need> needs_by_tensor(const Family& family, const EngineLayout& engine) {
  std::vector<Need> needs;
  for (std::int64_t coordinate = 0; coordinate < engine.replica_ranks(); ++coordinate) {
    for (const Parameter& parameter : family.parameters(engine, engine_rank(engine, coordinate))) {
      for (const Part& part : parameter.parts) {
        needs.push_back({part.tensor, static_cast<std::uint32_t>(coordinate), part.box});
      }
    }
  }
  std::stable_sort(needs.begin(), needs.end(),
                   [](const Need& a, const Need& b) { return a.tensor < b.tensor; });
  return needs;
}

/// Sorted distinct edges of one axis.
template <typename Start, typename Count>
std::vector<std::int64_t> edges(std::span<const Need> needs, Start start, Count count) {
  std::vector<std::int64_t> result;
  for (const Need& need : needs) {
    result.push_back(need.box.*start);
    result.push_back(need.box.*start + need.box.*count);
  }
  std::sort(result.begin(), result.end());
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return result;
}

/// Gives equal sets the same number.
class DestinationSets {
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

/// Bounded by the catalog's order: appends the pieces of one tensor.
void cut_tensor(std::span<const Need> needs, DestinationSets& sets, std::vector<Piece>& pieces) {
  const std::vector<std::int64_t> rows = edges(needs, &Box::row, &Box::rows);
  const std::vector<std::int64_t> cols = edges(needs, &Box::col, &Box::cols);
  std::vector<std::int64_t> set;
  for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
    for (std::size_t c = 0; c + 1 < cols.size(); ++c) {
      const Box cell{rows[r], rows[r + 1] - rows[r], cols[c], cols[c + 1] - cols[c]};
      set.clear();
      for (const Need& need : needs) {
        if (need.box.contains(cell)) set.push_back(need.coordinate);
      }
      if (set.empty()) continue;
      std::sort(set.begin(), set.end());
      set.erase(std::unique(set.begin(), set.end()), set.end());
      pieces.push_back({needs.front().tensor, sets.index(set), cell});
    }
  }
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

Routing route_pieces(const Family& family, const EngineLayout& engine, FanOut fan_out) {
  const std::vector<Need> needs = needs_by_tensor(family, engine);
  DestinationSets sets;
  Routing routing;
  for (auto begin = needs.begin(); begin != needs.end();) {
    const auto end =
        std::find_if(begin, needs.end(), [&](const Need& need) { return need.tensor != begin->tensor; });
    cut_tensor({begin, end}, sets, routing.pieces);
    begin = end;
  }
  routing.destinations = sets.take();
  if (fan_out == FanOut::kAll) {
    std::vector<std::int64_t> everyone(static_cast<std::size_t>(engine.replica_ranks()));
    std::iota(everyone.begin(), everyone.end(), 0);
    routing.destinations.assign(1, everyone);
    for (Piece& piece : routing.pieces) piece.destinations = 0;
  }
  return routing;
}

}  // namespace weightcast
