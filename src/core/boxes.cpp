#include "core/boxes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <queue>

namespace weightcast {

namespace {

/// The boxes that are open at a row of a sweep over all rows, by their first column.
class OpenBoxes {
 public:
  /// Drops those that end at `row` or before.
  void close_until(std::int64_t row) {
    for (; !ends_.empty() && ends_.top().first <= row; ends_.pop()) {
      const auto ended = by_col_.find(ends_.top().second);
      cols_ -= ended->second.cols;
      by_col_.erase(ended);
    }
  }

  /// Returns one that shares an element with `box`, or null after it was added.
  const Box* add(const Box& box) {
    const auto [at, fresh] = by_col_.emplace(box.col, box);
    if (!fresh) return &at->second;
    const Box* other = nullptr;
    if (at != by_col_.begin() && std::prev(at)->second.col + std::prev(at)->second.cols > box.col) {
      other = &std::prev(at)->second;
    } else if (std::next(at) != by_col_.end() && std::next(at)->first < box.col + box.cols) {
      other = &std::next(at)->second;
    }
    ends_.emplace(box.row + box.rows, box.col);
    cols_ += box.cols;
    return other;
  }

  std::int64_t cols() const { return cols_; }

  /// The first column from `col` on that no open box has.
  std::int64_t first_free(std::int64_t col) const {
    for (const auto& [first, box] : by_col_) {
      if (first > col) break;
      col = first + box.cols;
    }
    return col;
  }

  /// The next row at which one of them ends.
  std::int64_t next_end(std::int64_t otherwise) const {
    return ends_.empty() ? otherwise : ends_.top().first;
  }

 private:
  using End = std::pair<std::int64_t, std::int64_t>;  // end row, first column

  std::map<std::int64_t, Box> by_col_;
  std::priority_queue<End, std::vector<End>, std::greater<>> ends_;
  std::int64_t cols_ = 0;
};

/// Sorted, each once.
template <typename T>
void sort_once(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

/// The edges of boxes along one axis.
std::vector<std::int64_t> edges(const std::vector<Box>& boxes, std::int64_t Box::*start,
                                std::int64_t Box::*count) {
  std::vector<std::int64_t> result;
  for (const Box& box : boxes) {
    result.push_back(box.*start);
    result.push_back(box.*start + box.*count);
  }
  sort_once(result);
  return result;
}

}  // namespace

std::optional<std::pair<Box, Box>> find_overlap(std::vector<Box> boxes) {
  std::sort(boxes.begin(), boxes.end());
  OpenBoxes open;
  for (const Box& box : boxes) {
    open.close_until(box.row);
    if (const Box* other = open.add(box)) return std::pair(*other, box);
  }
  return std::nullopt;
}

std::optional<Box> find_gap(const Box& whole, std::vector<Box> boxes) {
  if (whole.empty()) return std::nullopt;
  std::sort(boxes.begin(), boxes.end());
  OpenBoxes open;
  auto next = boxes.begin();
  const std::int64_t end = whole.row + whole.rows;
  for (std::int64_t row = whole.row; row < end;) {
    open.close_until(row);
    for (; next != boxes.end() && next->row == row; ++next) open.add(*next);
    if (open.cols() < whole.cols) return Box{row, 1, open.first_free(whole.col), 1};
    row = open.next_end(end);
    if (next != boxes.end()) row = std::min(row, next->row);
  }
  return std::nullopt;
}

std::optional<std::int64_t> covered_area(std::vector<Box>& boxes, double& work) {
  sort_once(boxes);
  const std::vector<std::int64_t> rows = edges(boxes, &Box::row, &Box::rows);
  const std::vector<std::int64_t> cols = edges(boxes, &Box::col, &Box::cols);
  work -=
      static_cast<double>(rows.size()) * static_cast<double>(cols.size()) * static_cast<double>(boxes.size());
  if (work < 0) return std::nullopt;
  if (!find_overlap(boxes)) {
    return std::accumulate(boxes.begin(), boxes.end(), std::int64_t{0},
                           [](std::int64_t sum, const Box& box) { return sum + box.area(); });
  }
  std::int64_t area = 0;
  for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
    for (std::size_t c = 0; c + 1 < cols.size(); ++c) {
      const Box cell{rows[r], rows[r + 1] - rows[r], cols[c], cols[c + 1] - cols[c]};
      const bool covered =
          std::any_of(boxes.begin(), boxes.end(), [&](const Box& box) { return box.contains(cell); });
      if (covered) area += cell.area();
    }
  }
  return area;
}

bool lies_within(const Box& box, const Shape& shape) {
  return box.rows > 0 && box.cols > 0 && box.row < shape.rows() && box.rows <= shape.rows() - box.row &&
         box.col < shape.cols() && box.cols <= shape.cols() - box.col;
}

std::string text_of_extents(const Box& box) {
  return fmt::format("{} rows from {} on, {} columns from {} on", box.rows, box.row, box.cols, box.col);
}

}  // namespace weightcast
