#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/matrix_layout.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

// The way that is measured beside ours: what engines do with experts after they have loaded them. Of every
// matrix a table says which row goes where; the rows are gathered through it into a temporary, which is then
// cut into blocks of K or copied to the parameter.

/// w13 or w2 of one expert: its rows are those of one or two tensors, one above the other.
struct IndexedMatrix {
  struct Part {
    std::int64_t staging = 0;  ///< bytes from the start of the bucket to its first row
    std::int64_t rows = 0;     ///< 0: there is none
    std::int64_t first = 0;    ///< its row r becomes row first + layout.row_offset(r)
    MatrixLayout layout = {};
  };

  std::uint32_t parameter = 0;
  std::int64_t offset = 0;  ///< bytes from the start of the parameter
  std::int64_t rows = 0;
  std::int64_t row_bytes = 0;
  bool shuffled = false;     ///< false: the parts are copied as they are
  bool in_k_blocks = false;  ///< byte x of row n lies at (x/128 · rows + n) · 128 + x%128
  std::array<Part, 2> parts = {};

  std::int64_t bytes() const { return rows * row_bytes; }
};

/// Bytes of a block of K of one row, and the unit in which rows are gathered.
inline constexpr std::int64_t kIndexedBlockBytes = 128;
inline constexpr std::int64_t kIndexedUnitBytes = 16;

/// The matrices of a rank plan of one bucket of values. Empty where no row changes its place, and where more
/// happens than this can express: a quantiser, padding, a transpose.
std::vector<IndexedMatrix> indexed_matrices(const Plan& plan, const RankPlan& rank_plan);

/// Fills the table: row n of the matrix is row index[n] of its parts, counted through both. Its size is the
/// number of the matrix's rows.
void build_index(const IndexedMatrix& matrix, std::span<std::int64_t> index);

}  // namespace weightcast
