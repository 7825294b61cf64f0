#include "plan/proof.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <queue>
#include <tuple>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// True when no two boxes share an element. A sweep over rows keeps the column intervals of the boxes that
/// are open at the current row; a new one may not touch its neighbours.
bool disjoint(std::span<const Box> by_row) {
  std::map<std::int64_t, std::int64_t> open;          // first column → end column
  using End = std::pair<std::int64_t, std::int64_t>;  // end row, first column
  std::priority_queue<End, std::vector<End>, std::greater<>> ends;
  for (const Box& box : by_row) {
    for (; !ends.empty() && ends.top().first <= box.row; ends.pop()) open.erase(ends.top().second);
    const auto [at, fresh] = open.emplace(box.col, box.col + box.cols);
    if (!fresh || (at != open.begin() && std::prev(at)->second > box.col) ||
        (std::next(at) != open.end() && std::next(at)->first < box.col + box.cols)) {
      return false;
    }
    ends.emplace(box.row + box.rows, box.col);
  }
  return true;
}

struct Interval {
  std::uint32_t buffer = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;

  friend auto operator<=>(const Interval&, const Interval&) = default;
};

}  // namespace

void prove_sent_once(const Plan& plan, const Catalog& catalog) {
  std::vector<std::vector<Box>> sent(catalog.size());
  for (const Bucket& bucket : plan.buckets) {
    if (bucket.bytes > plan.limits.bucket_bytes) {
      throw InternalError(
          fmt::format("a bucket of {} bytes exceeds the cap of {}", bucket.bytes, plan.limits.bucket_bytes));
    }
    std::int64_t end = 0;
    for (std::uint32_t i = 0; i < bucket.segments; ++i) {
      const Segment& segment = plan.segments[bucket.first_segment + i];
      sent[segment.tensor].push_back(segment.box);
      if (segment.offset < end) {
        throw InternalError(fmt::format("segments of a bucket overlap at {}", catalog[segment.tensor].name));
      }
      end = segment.offset + segment.box.area() * dtype_bytes(catalog[segment.tensor].dtype);
    }
    if (end != bucket.bytes)
      throw InternalError(fmt::format("a bucket of {} bytes ends at {}", bucket.bytes, end));
  }
  for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
    std::vector<Box>& boxes = sent[tensor];
    std::sort(boxes.begin(), boxes.end());
    std::int64_t area = 0;
    bool inside = true;
    for (const Box& box : boxes) {
      area += box.area();
      inside = inside && !box.empty() && Box::whole(catalog[tensor].shape).contains(box);
    }
    if (!inside || area != catalog[tensor].shape.elements() || !disjoint(boxes)) {
      throw InternalError(fmt::format("the plan does not send every element of {} exactly once ({} of {})",
                                      catalog[tensor].name, area, catalog[tensor].shape.elements()));
    }
  }
}

void prove_written_once(const std::vector<Parameter>& parameters, std::span<const Move> moves) {
  std::vector<Interval> written;
  written.reserve(moves.size());
  for (const Move& move : moves) {
    const std::int64_t runs = move.dense() ? 1 : move.rows;
    const std::int64_t bytes = move.dense() ? move.bytes() : move.row_bytes;
    for (std::int64_t run = 0; run < runs; ++run) {
      const std::int64_t begin = move.offset + run * move.pitch;
      written.push_back({move.buffer, begin, begin + bytes});
    }
  }
  std::sort(written.begin(), written.end());
  auto at = written.begin();
  for (std::uint32_t number = 0; number < parameters.size(); ++number) {
    const Parameter& parameter = parameters[number];
    std::int64_t end = 0;
    for (; at != written.end() && at->buffer == number; ++at) {
      if (at->begin != end) break;
      end = at->end;
    }
    if (end != parameter.bytes() || (at != written.end() && at->buffer == number)) {
      throw InternalError(
          fmt::format("the plan does not write byte {} of parameter {} ({} bytes) exactly once", end,
                      parameter.name, parameter.bytes()));
    }
  }
  if (at != written.end()) {
    throw InternalError(
        fmt::format("the plan writes to parameter number {} of {}", at->buffer, parameters.size()));
  }
}

}  // namespace weightcast
