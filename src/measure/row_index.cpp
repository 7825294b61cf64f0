#include "measure/row_index.hpp"

#include <algorithm>
#include <map>
#include <optional>

namespace weightcast {

namespace {

/// Bytes from a row to the next that a step of one row means to the layout of a part.
std::int64_t row_step(const Part& part, std::int64_t row_bytes) {
  return part.layout.unit_step == 0 ? row_bytes : part.layout.unit_bytes();
}

/// `layout` counting rows in place of bytes; nothing when it moves less than rows.
std::optional<MatrixLayout> in_rows(const Part& part, std::int64_t row_bytes) {
  if (part.layout.plain()) {
    MatrixLayout order;
    order.step[3] = 1;
    return part.pitch == row_bytes ? std::optional(order) : std::nullopt;
  }
  MatrixLayout rows = part.layout;
  rows.unit_step = 0;
  rows.unit_bits = 0;
  for (std::int64_t& step : rows.step) {
    if (step % row_step(part, row_bytes) != 0) return std::nullopt;
    step /= row_step(part, row_bytes);
  }
  return rows;
}

/// Adds a part to its matrix; false when it cannot be one of it.
bool add_part(const Part& part, std::int64_t staging, std::int64_t row_bytes, IndexedMatrix& matrix) {
  const auto layout = in_rows(part, row_bytes);
  const bool blocks = part.layout.unit_step != 0;
  if (!layout || (blocks && part.layout.unit_bytes() != kIndexedBlockBytes)) return false;
  const bool fresh = matrix.rows == 0;
  if (!fresh && (matrix.row_bytes != row_bytes || matrix.in_k_blocks != blocks)) return false;
  const std::int64_t step = row_step(part, row_bytes);
  const std::int64_t first = part.offset - matrix.offset;
  auto* const free = std::find_if(matrix.parts.begin(), matrix.parts.end(),
                                  [](const IndexedMatrix::Part& p) { return p.rows == 0; });
  if (free == matrix.parts.end() || first % step != 0) return false;
  *free = {staging, part.box.rows, first / step, *layout};
  matrix.rows += part.box.rows;
  matrix.row_bytes = row_bytes;
  matrix.in_k_blocks = blocks;
  matrix.shuffled = matrix.shuffled || !part.layout.plain();
  return true;
}

}  // namespace

std::vector<IndexedMatrix> indexed_matrices(const Plan& plan, const RankPlan& rank_plan) {
  if (plan.topology.engine.quantizer || !rank_plan.padding.empty()) return {};
  std::map<std::uint32_t, const Segment*> segments;
  for (const Segment& segment : plan.segments) {
    if (!segments.emplace(segment.tensor, &segment).second) return {};
  }
  std::vector<IndexedMatrix> matrices;
  for (std::uint32_t number = 0; number < rank_plan.parameters.size(); ++number) {
    const Parameter& parameter = rank_plan.parameters[number];
    const std::int64_t slab = parameter.bytes() / parameter.shape[0];
    const std::size_t before = matrices.size();
    for (std::int64_t expert = 0; expert < parameter.shape[0]; ++expert) {
      matrices.push_back({number, expert * slab, 0, 0, false, false, {}});
    }
    for (const Part& part : parameter.parts) {
      const std::int64_t row_bytes = part.box.cols * dtype_bytes(parameter.dtype);
      const Segment& segment = *segments.at(part.tensor);
      IndexedMatrix& matrix = matrices[before + static_cast<std::size_t>(part.offset / slab)];
      const bool whole = segment.box == part.box && row_bytes % kIndexedUnitBytes == 0;
      if (!whole || !add_part(part, segment.offset, row_bytes, matrix)) return {};
    }
  }
  const bool none = std::none_of(matrices.begin(), matrices.end(), [](const auto& m) { return m.shuffled; });
  return none ? std::vector<IndexedMatrix>() : matrices;
}

void build_index(const IndexedMatrix& matrix, std::span<std::int64_t> index) {
  std::int64_t before = 0;
  for (const IndexedMatrix::Part& part : matrix.parts) {
    for (std::int64_t row = 0; row < part.rows; ++row) {
      index[static_cast<std::size_t>(part.first + part.layout.row_offset(row))] = before + row;
    }
    before += part.rows;
  }
}

}  // namespace weightcast
