#include "plan/expert_slabs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "core/hash.hpp"

namespace weightcast {

namespace {

/// How far a matrix of a layout reaches. Experts by the hundred have the same matrices.
class Extents {
 public:
  std::int64_t of(const MatrixLayout& layout, std::int64_t rows, std::int64_t bytes) {
    const auto known = std::find_if(known_.begin(), known_.end(), [&](const Known& one) {
      return one.layout == layout && one.rows == rows && one.bytes == bytes;
    });
    if (known != known_.end()) return known->extent;
    known_.push_back({layout, rows, bytes, layout.extent(rows, bytes)});
    return known_.back().extent;
  }

 private:
  struct Known {
    MatrixLayout layout;
    std::int64_t rows = 0;
    std::int64_t bytes = 0;
    std::int64_t extent = 0;
  };
  std::vector<Known> known_;
};

void add(Hasher& hasher, const MatrixLayout& layout) {
  for (const std::int64_t step : layout.step) hasher.add(step);
  for (const std::uint8_t bits : layout.bits) hasher.add(bits);
  hasher.add(layout.unit_step).add(layout.unit_bits);
}

/// What feeds the slabs of one parameter.
class SlabHashes {
 public:
  SlabHashes(Extents& extents, std::int64_t slots, std::int64_t slab_bytes)
      : extents_(extents), slab_bytes_(slab_bytes), hashers_(static_cast<std::size_t>(slots)) {}

  /// By slot; nothing where something reaches from one slab into another.
  std::optional<std::vector<std::uint64_t>> of(const Parameter& parameter) {
    for (const Part& part : parameter.parts) add_part(parameter, part);
    for (const Padding& padding : parameter.padding) add_padding(padding, 'z');
    for (const Padding& untouched : parameter.untouched) add_padding(untouched, 'u');
    for (const Scalar& scalar : parameter.scalars) {
      if (Hasher* const slab = slab_of(scalar.offset, 4)) {
        slab->add('s').add(scalar.offset % slab_bytes_).add(scalar.scope);
        slab->add(scalar.factor).add(scalar.second_factor);
      }
    }
    if (!closed_) return std::nullopt;
    std::vector<std::uint64_t> hashes;
    for (const Hasher& hasher : hashers_) hashes.push_back(hasher.digest());
    return hashes;
  }

 private:
  /// The slab in which `bytes` bytes from `offset` on lie; null, and noted, where they lie in two.
  Hasher* slab_of(std::int64_t offset, std::int64_t bytes) {
    const std::int64_t slot = offset / slab_bytes_;
    const bool inside = offset >= 0 && slot < static_cast<std::int64_t>(hashers_.size()) &&
                        offset % slab_bytes_ + bytes <= slab_bytes_;
    if (!inside) closed_ = false;
    return inside ? &hashers_[static_cast<std::size_t>(slot)] : nullptr;
  }

  void add_part(const Parameter& parameter, const Part& part) {
    const Box plane = part.form.of(part.box);
    if (plane.empty()) return;
    const std::int64_t row_bytes = plane.cols * dtype_bytes(parameter.dtype);
    const std::int64_t extent = part.layout.plain() ? (plane.rows - 1) * part.pitch + row_bytes
                                                    : extents_.of(part.layout, plane.rows, row_bytes);
    Hasher* const slab = slab_of(part.offset, extent);
    if (slab == nullptr) return;
    slab->add('p').add(part.offset % slab_bytes_).add(part.pitch).add(part.tensor).add(part.scope);
    slab->add(part.box.row).add(part.box.rows).add(part.box.col).add(part.box.cols);
    slab->add(part.form.plane).add(part.form.block_rows).add(part.form.block_cols).add(part.negated_exp);
    add(*slab, part.layout);
  }

  void add_padding(const Padding& padding, char kind) {
    const std::int64_t extent =
        padding.layout.plain()
            ? padding.bytes
            : extents_.of(padding.layout, padding.row + padding.rows, padding.byte + padding.bytes);
    Hasher* const slab = slab_of(padding.offset, extent);
    if (slab == nullptr) return;
    slab->add(kind).add(padding.offset % slab_bytes_).add(padding.bytes).add(padding.byte);
    slab->add(padding.row).add(padding.rows);
    add(*slab, padding.layout);
  }

  Extents& extents_;
  std::int64_t slab_bytes_;
  std::vector<Hasher> hashers_;
  bool closed_ = true;
};

/// The layer of what feeds a parameter; none where nothing of a layer does.
std::int64_t layer_of(const Catalog& catalog, const Parameter& parameter) {
  if (!parameter.parts.empty()) return catalog[parameter.parts.front().tensor].layer;
  if (!parameter.scalars.empty()) return catalog[parameter.scalars.front().scope].layer;
  return Tensor::kNone;
}

EngineLayout placed(EngineLayout layout, const ExpertPlacement& placement) {
  layout.experts = placement;
  return layout;
}

}  // namespace

RankSlabs rank_slabs(const Family& family, const EngineLayout& layout, const ExpertMap& from,
                     const ExpertMap& to, const EngineRank& place) {
  RankSlabs result;
  result.parameters = family.parameters(placed(layout, from.placement), place);
  std::vector<Parameter> after = family.parameters(placed(layout, to.placement), place);
  if (after.size() != result.parameters.size()) {
    throw InternalError("the maps give a rank other parameters");
  }
  const std::int64_t slots = from.slots / from.ep;
  Extents extents;
  for (std::uint32_t number = 0; number < after.size(); ++number) {
    Parameter& parameter = result.parameters[number];
    const bool divided = parameter.shape.elements() > 0 && parameter.shape.elements() % slots == 0;
    const std::int64_t elements = divided ? parameter.shape.elements() / slots : parameter.shape.elements();
    const std::int64_t bytes = elements * dtype_bytes(parameter.dtype);
    const auto hashes = [&](const Parameter& of, std::int64_t count, std::int64_t slab_bytes) {
      return SlabHashes(extents, count, slab_bytes).of(of);
    };
    SlabParameter slab{number, layer_of(family.catalog(), parameter), elements, {}, {}};
    auto old_hashes = divided ? hashes(parameter, slots, bytes) : std::nullopt;
    auto new_hashes = divided ? hashes(after[number], slots, bytes) : std::nullopt;
    if (slab.layer != Tensor::kNone && old_hashes && new_hashes) {
      slab.before = std::move(*old_hashes);
      slab.after = std::move(*new_hashes);
      result.slabs.push_back(std::move(slab));
    } else if (parameter.bytes() > 0 &&
               hashes(parameter, 1, parameter.bytes()) != hashes(after[number], 1, parameter.bytes())) {
      throw UsageError(
          fmt::format("--moe-layout {}: {} depends on the expert map, but does not keep experts one "
                      "behind the other; run an update in place of a rebalance",
                      layout.moe_layout, parameter.name));
    }
    parameter = {parameter.name, parameter.dtype, parameter.shape, {}, {}};
  }
  return result;
}

}  // namespace weightcast
