#include "model/landing/unread_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/units.hpp"

namespace weightcast {

namespace {

/// The boxes of a tensor that land on some rank.
std::vector<Box> boxes_of(const LandingMap& map, std::uint32_t tensor) {
  std::vector<Box> boxes;
  for (const LandingRank& rank : map.ranks) {
    for (const LandedParameter& parameter : rank.parameters) {
      for (const Landing& landing : parameter.landings) {
        if (landing.tensor == tensor) boxes.push_back(landing.box);
      }
    }
  }
  return boxes;
}

std::vector<std::int64_t> edges(const std::vector<Box>& boxes, std::int64_t Box::*start,
                                std::int64_t Box::*count, std::int64_t end) {
  std::vector<std::int64_t> result{0, end};
  for (const Box& box : boxes) {
    result.push_back(box.*start);
    result.push_back(box.*start + box.*count);
  }
  std::ranges::sort(result);
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return result;
}

/// The first box, from the top, of which no element is in any of these; empty where there is none.
Box first_gap(const Shape& shape, const std::vector<Box>& boxes) {
  const std::vector<std::int64_t> rows = edges(boxes, &Box::row, &Box::rows, shape.rows());
  const std::vector<std::int64_t> cols = edges(boxes, &Box::col, &Box::cols, shape.cols());
  const auto lands = [&](std::size_t r, std::size_t c) {
    return std::ranges::any_of(boxes, [&](const Box& box) {
      return box.contains({rows[r], rows[r + 1] - rows[r], cols[c], cols[c + 1] - cols[c]});
    });
  };
  for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
    for (std::size_t c = 0; c + 1 < cols.size(); ++c) {
      if (lands(r, c)) continue;
      std::size_t last_col = c + 1;
      while (last_col + 1 < cols.size() && !lands(r, last_col)) ++last_col;
      std::size_t last_row = r + 1;
      const auto band_is_free = [&] {
        for (std::size_t at = c; at < last_col; ++at) {
          if (lands(last_row, at)) return false;
        }
        return true;
      };
      while (last_row + 1 < rows.size() && band_is_free()) ++last_row;
      return {rows[r], rows[last_row] - rows[r], cols[c], cols[last_col] - cols[c]};
    }
  }
  return {};
}

}  // namespace

std::string unread_text(const LandingMap& map) {
  std::int64_t tensors = 0;
  std::uint32_t example = 0;
  for (std::uint32_t i = 0; i < map.tensors.size(); ++i) {
    if (!map.tensors[i].read || map.tensors[i].unread == 0) continue;
    if (tensors++ == 0) example = i;
  }
  if (tensors == 0) return "";
  const LandedTensor& tensor = map.tensors[example];
  return fmt::format(
      "of {} elements land on no rank, as {} of {} {}; do the checkpoint and the engine's config "
      "fit together?",
      counted(tensors, "tensor"), first_gap(tensor.shape, boxes_of(map, example)).to_string(), tensor.name,
      tensor.shape.to_string());
}

}  // namespace weightcast
