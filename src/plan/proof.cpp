#include "plan/proof.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "core/boxes.hpp"
#include "core/error.hpp"

namespace weightcast {

namespace {

/// The matrix that a layout places from an offset on, and the boxes (rows and bytes) that moves write of it.
struct PlacedMatrix {
  std::int64_t offset = 0;
  MatrixLayout layout;
  std::vector<Box> boxes;

  /// Rows and bytes, if the boxes tile a matrix from its first row and byte on; empty otherwise.
  Box tiled() const {
    Box whole;
    std::int64_t area = 0;
    bool inside = true;
    for (const Box& box : boxes) {
      inside = inside && !box.empty() && box.row >= 0 && box.col >= 0;
      whole.rows = std::max(whole.rows, box.row + box.rows);
      whole.cols = std::max(whole.cols, box.col + box.cols);
      area += box.area();
    }
    return inside && area == whole.area() && !find_overlap(boxes) ? whole : Box();
  }
};

/// Layouts place all bytes of several matrices of a buffer, and nothing besides. What a bundle of matrices
/// that lie among one another covers depends on no more than their layouts, sizes and distances; so experts
/// by the hundred are looked at once.
class PlacedProof {
 public:
  /// The first byte of `bytes` that is not written exactly once, or `bytes`.
  std::int64_t first_wrong_byte(std::vector<PlacedMatrix>& matrices, std::int64_t bytes) {
    std::sort(matrices.begin(), matrices.end(),
              [](const PlacedMatrix& a, const PlacedMatrix& b) { return a.offset < b.offset; });
    std::int64_t end = 0;
    for (auto first = matrices.begin(); first != matrices.end();) {
      Bundle bundle;
      std::int64_t bundle_bytes = 0;
      auto last = first;
      // A bundle ends where as many bytes have been written as lie before the next matrix.
      do {
        const Box whole = last->tiled();
        if (whole.empty()) return end;
        bundle.push_back({last->offset - end, whole.rows, whole.cols, last->layout});
        bundle_bytes += whole.area();
        ++last;
      } while (last != matrices.end() && last->offset < end + bundle_bytes);
      if (end + bundle_bytes > bytes || !covers(bundle, bundle_bytes)) return end;
      end += bundle_bytes;
      first = last;
    }
    return end;
  }

 private:
  struct Member {
    std::int64_t offset = 0;
    std::int64_t rows = 0;
    std::int64_t bytes = 0;
    MatrixLayout layout;

    bool operator==(const Member&) const = default;
  };
  using Bundle = std::vector<Member>;

  bool covers(const Bundle& bundle, std::int64_t bytes) {
    const auto known =
        std::find_if(known_.begin(), known_.end(), [&](const auto& entry) { return entry.first == bundle; });
    if (known != known_.end()) return known->second;
    known_.emplace_back(bundle, covers_once(bundle, bytes));
    return known_.back().second;
  }

  static bool covers_once(const Bundle& bundle, std::int64_t bytes) {
    // All runs together are as many bytes as there are: when none overlaps another, they cover them.
    std::vector<bool> written(static_cast<std::size_t>(bytes), false);
    for (const Member& member : bundle) {
      for (std::int64_t row = 0; row < member.rows; ++row) {
        for (std::int64_t byte = 0; byte < member.bytes;) {
          const std::int64_t run = member.layout.run(byte, member.bytes - byte);
          const std::int64_t at =
              member.offset + member.layout.row_offset(row) + member.layout.byte_offset(byte);
          if (at < 0 || at + run > bytes) return false;
          for (std::int64_t i = at; i < at + run; ++i) {
            if (written[static_cast<std::size_t>(i)]) return false;
            written[static_cast<std::size_t>(i)] = true;
          }
          byte += run;
        }
      }
    }
    return true;
  }

  std::vector<std::pair<Bundle, bool>> known_;
};

struct Interval {
  std::uint32_t buffer = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;

  friend auto operator<=>(const Interval&, const Interval&) = default;
};

void add_intervals(const Move& move, std::vector<Interval>& written) {
  const std::int64_t runs = move.dense() ? 1 : move.rows;
  const std::int64_t bytes = move.dense() ? move.bytes() : move.row_bytes;
  for (std::int64_t run = 0; run < runs; ++run) {
    const std::int64_t begin =
        move.offset +
        (move.layout.plain() ? run * move.pitch : move.layout.row_offset(move.row + run) + move.byte);
    written.push_back({move.buffer, begin, begin + bytes});
  }
}

/// What such a move writes, as a matrix of its own whose rows lie a pitch apart.
Move as_matrix(const Move& move) {
  Move matrix = move;
  if (!move.layout.plain()) matrix.offset += move.layout.row_offset(move.row) + move.byte;
  matrix.row = 0;
  matrix.byte = 0;
  if (move.dense()) {
    matrix.rows = 1;
    matrix.row_bytes = move.bytes();
  }
  matrix.layout = {};
  matrix.layout.step[3] = move.layout.plain() ? std::max(move.pitch, matrix.row_bytes) : move.layout.step[3];
  return matrix;
}

/// The matrices of a parameter, found by where they begin.
struct PlacedMatrices {
  std::vector<PlacedMatrix> all;
  std::unordered_multimap<std::int64_t, std::size_t> by_offset;

  void add_box(const Move& move) {
    const auto [first, last] = by_offset.equal_range(move.offset);
    const auto found =
        std::find_if(first, last, [&](const auto& entry) { return all[entry.second].layout == move.layout; });
    if (found == last) {
      by_offset.emplace(move.offset, all.size());
      all.push_back({move.offset, move.layout, {}});
    }
    PlacedMatrix& matrix = found == last ? all.back() : all[found->second];
    matrix.boxes.push_back({move.row, move.rows, move.byte, move.row_bytes});
  }
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
      end = segment.offset + plan.segment_bytes(segment);
    }
    if (end != bucket.bytes)
      throw InternalError(fmt::format("a bucket of {} bytes ends at {}", bucket.bytes, end));
  }
  for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
    const std::vector<Box>& boxes = sent[tensor];
    std::int64_t area = 0;
    bool inside = true;
    for (const Box& box : boxes) {
      area += box.area();
      inside = inside && !box.empty() && Box::whole(catalog[tensor].shape).contains(box);
    }
    const std::int64_t read = catalog[tensor].shape.elements() - catalog[tensor].unread;
    if (!inside || area != read || find_overlap(boxes)) {
      throw InternalError(fmt::format("the plan does not send every element of {} exactly once ({} of {})",
                                      catalog[tensor].name, area, read));
    }
  }
}

void prove_written_once(const std::vector<Parameter>& parameters, std::span<const Move> moves) {
  std::vector<Interval> written;
  written.reserve(moves.size());
  std::map<std::uint32_t, PlacedMatrices> placed;  // by parameter
  const auto in_rows = [](const Move& move) { return move.layout.plain() || move.layout.pitched(); };
  for (const Move& move : moves) {
    if (!in_rows(move)) placed[move.buffer].add_box(move);
  }
  for (const Move& move : moves) {
    if (!in_rows(move)) continue;
    // Beside what a layout has placed in a parameter everything counts as placed.
    const auto beside = placed.find(move.buffer);
    beside == placed.end() ? add_intervals(move, written) : beside->second.add_box(as_matrix(move));
  }
  std::sort(written.begin(), written.end());
  PlacedProof proof;
  auto at = written.begin();
  for (std::uint32_t number = 0; number < parameters.size(); ++number) {
    const Parameter& parameter = parameters[number];
    std::int64_t end = 0;
    if (const auto matrices = placed.find(number); matrices != placed.end()) {
      end = proof.first_wrong_byte(matrices->second.all, parameter.bytes());
    } else {
      for (; at != written.end() && at->buffer == number; ++at) {
        if (at->begin != end) break;
        end = at->end;
      }
    }
    if (end != parameter.bytes() || (at != written.end() && at->buffer == number)) {
      throw InternalError(
          fmt::format("the plan does not write byte {} of parameter {} ({} bytes) exactly once", end,
                      parameter.name, parameter.bytes()));
    }
  }
  const std::uint32_t beyond = at != written.end() ? at->buffer : placed.empty() ? 0 : placed.rbegin()->first;
  if (at != written.end() || beyond >= std::max<std::size_t>(1, parameters.size())) {
    throw InternalError(
        fmt::format("the plan writes to parameter number {} of {}", beyond, parameters.size()));
  }
}

}  // namespace weightcast
