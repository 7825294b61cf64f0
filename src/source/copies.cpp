#include "source/copies.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "model/beside_weights.hpp"
#include "source/bound_reader.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;

/// Throws InputError for what cannot be what it must repeat.
[[noreturn]] void throw_differs(const Checkpoint& checkpoint, const StoredTensor& copy,
                                const Tensor& original, const std::string& how, bool may_be_the_head) {
  if (is_drafts_copy(copy.name)) {
    throw InputError(fmt::format(
        "{}: tensor {} {} {}, which engines use for draft layers, too, and they would drop it; train the "
        "two as one, or send them without it with --exclude '{}'",
        checkpoint.path, excerpt(copy.name), how, original.name, excerpt(copy.name)));
  }
  throw InputError(
      fmt::format("{}: tensor {} {} {}, which config.json says it is tied to (tie_word_embeddings), and "
                  "engines would drop it; {}keep the embedding with --tied-head embedding",
                  checkpoint.path, excerpt(copy.name), how, original.name,
                  may_be_the_head ? "set tie_word_embeddings to false, or " : ""));
}

/// Compares one copy with its original.
class Comparison {
 public:
  Comparison(const Catalog& catalog, const Checkpoint& checkpoint, const Binding& binding, const Copy& copy)
      : checkpoint_(checkpoint),
        copy_(checkpoint.tensors[copy.stored]),
        original_(catalog[copy.tensor]),
        number_(copy.tensor),
        source_(catalog, checkpoint, binding.held),
        other_(copies_, checkpoint, held_) {
    if (copy_.obstacle != nullptr) {
      throw_differs(checkpoint, copy_, original_,
                    fmt::format("{} and cannot be compared with", copy_.obstacle->why), false);
    }
    if (copy_.shape != original_.shape) {
      throw_differs(
          checkpoint, copy_, original_,
          fmt::format("{} has another shape than {}", copy_.shape.to_string(), original_.shape.to_string()),
          false);
    }
    copies_.add(original_.name, original_.dtype, original_.shape);
    require_castable(checkpoint, copy_, original_.dtype);
    held_ = HeldWeights({held_in(copy_, copy.stored, 0, Box::whole(original_.shape))}, 1);
  }

  void run(ThreadPool& readers, const WorkShare& share, const std::function<void()>& poll) const {
    const std::int64_t rows = original_.shape.rows();
    const std::int64_t first = rows * share.index / share.count;
    const std::int64_t end = rows * (share.index + 1) / share.count;
    const std::int64_t row_bytes =
        std::max<std::int64_t>(1, original_.shape.cols() * dtype_bytes(original_.dtype));
    const std::int64_t each = std::max<std::int64_t>(1, kPieceBytes / row_bytes);
    std::atomic<std::int64_t> different = kNone;
    // Enough at a time to keep all readers busy.
    const std::int64_t at_once = 16 * each * readers.threads();
    for (std::int64_t row = first; row < end && different == kNone; row += at_once) {
      poll();
      const std::int64_t stop = std::min(end, row + at_once);
      readers.run(static_cast<std::size_t>(ceil_div(stop - row, each)), [&](std::size_t i) {
        const std::int64_t start = row + static_cast<std::int64_t>(i) * each;
        const std::int64_t found =
            first_difference({start, std::min(each, stop - start), 0, original_.shape.cols()});
        for (std::int64_t known = different;
             found < known && !different.compare_exchange_weak(known, found);) {
        }
      });
    }
    source_.require_unchanged();
    other_.require_unchanged();
    if (different != kNone) {
      throw_differs(checkpoint_, copy_, original_,
                    fmt::format("differs (from row {} on) from", different.load()), true);
    }
  }

 private:
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

  /// The first row of a box that is not the same in both.
  std::int64_t first_difference(const Box& box) const {
    const auto row_bytes = static_cast<std::size_t>(box.cols * dtype_bytes(original_.dtype));
    const std::size_t bytes = static_cast<std::size_t>(box.rows) * row_bytes;
    // Each thread keeps its own.
    thread_local std::vector<std::byte> one;
    thread_local std::vector<std::byte> other;
    one.resize(bytes);
    other.resize(bytes);
    source_.read(number_, box, one.data());
    other_.read(0, box, other.data());
    if (std::memcmp(one.data(), other.data(), bytes) == 0) return kNone;
    const auto at = std::ranges::mismatch(one, other).in1 - one.begin();
    return box.row + static_cast<std::int64_t>(static_cast<std::size_t>(at) / row_bytes);
  }

  const Checkpoint& checkpoint_;
  const StoredTensor& copy_;
  const Tensor& original_;
  std::uint32_t number_;
  // Of the copy alone, under the original's name.
  Catalog copies_;
  HeldWeights held_;
  BoundReader source_;
  BoundReader other_;
};

/// Whether both are the same bytes of the same file.
bool same_place(const Checkpoint& checkpoint, const Binding& binding, const Copy& copy) {
  const auto boxes = binding.held.of(copy.tensor);
  return boxes.size() == 1 &&
         same_bytes(checkpoint.tensors[copy.stored], checkpoint.tensors[boxes.front().buffer]);
}

}  // namespace

void require_equal_copies(const Catalog& catalog, const Checkpoint& checkpoint, const Binding& binding,
                          ThreadPool& readers, const WorkShare& share, const std::function<void()>& poll) {
  for (const Copy& copy : binding.copies) {
    if (same_place(checkpoint, binding, copy)) continue;
    Comparison(catalog, checkpoint, binding, copy).run(readers, share, poll);
  }
}

}  // namespace weightcast
