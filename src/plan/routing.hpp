#pragma once

#include <cstdint>
#include <vector>

#include "core/shape.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"

namespace weightcast {

/// A box of a tensor that a set of ranks needs as a whole and no other rank needs any part of, and that a set
/// of trainers holds as a whole.
struct Piece {
  std::uint32_t tensor = 0;
  std::uint32_t destinations = 0;
  std::uint32_t holders = 0;
  Box box;
};

/// Bytes of a row of a piece, and of all of it, as values.
std::int64_t piece_row_bytes(const Catalog& catalog, const Piece& piece);
std::int64_t piece_bytes(const Catalog& catalog, const Piece& piece);

/// Takes the first `rows` rows off a piece.
Piece take_rows(Piece& piece, std::int64_t rows);

/// All pieces of the model, in catalog order, and the sets they name, each ascending.
struct Routing {
  std::vector<std::vector<std::int64_t>> destinations;  ///< coordinates in a replica
  std::vector<std::vector<std::int64_t>> holders;       ///< trainers
  std::vector<Piece> pieces;
  std::vector<WireForm> wire;         ///< by tensor
  std::vector<std::uint32_t> scopes;  ///< of scales that several tensors share: the first of these
};

/// Cuts every tensor along the edges of the boxes that the ranks of one replica need and, where a layout or
/// the trainers themselves say it, of those that trainers hold; otherwise every trainer may send all. With
/// FanOut::kAll the pieces are the same but all of them go to every coordinate. Throws UsageError when a
/// layout does not divide the model, or when trainers hold the blocks of a quantised tensor only in part;
/// InputError for what no trainer has published.
Routing route_pieces(const Family& family, const Topology& topology, const Limits& limits);

}  // namespace weightcast
