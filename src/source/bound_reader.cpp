#include "source/bound_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "core/turned.hpp"
#include "kernels/executor.hpp"
#include "kernels/host/one_more_row.hpp"
#include "memory/host_buffer.hpp"
#include "source/binding.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kCastScratchBytes = std::int64_t{4} << 20;

std::span<std::byte> bytes_at(std::byte* data, std::int64_t bytes) {
  return {data, static_cast<std::size_t>(bytes)};
}

/// What a held box has of `box`, as a box of the stored tensor's matrix.
Box stored_box(const StoredTensor& stored, const HeldBox& held, const Box& box) {
  const std::int64_t element = dtype_bytes(stored.dtype);
  const std::int64_t first = held.at(box.row, box.col, element) / element;
  return {first / stored.shape.cols(), box.rows, first % stored.shape.cols(), box.cols};
}

}  // namespace

BoundReader::BoundReader(const Catalog& catalog, const Checkpoint& checkpoint, const HeldWeights& held)
    : catalog_(catalog), checkpoint_(checkpoint), held_(held), reader_(checkpoint) {}

void BoundReader::read(std::uint32_t tensor, const Box& box, std::byte* to) const {
  const std::int64_t element = dtype_bytes(catalog_[tensor].dtype);
  std::int64_t left = box.area();
  for (const HeldBox& held : held_.of(tensor)) {
    const Box common = held.box.intersect(box);
    if (common.empty()) continue;
    left -= common.area();
    std::byte* const first = to + ((common.row - box.row) * box.cols + common.col - box.col) * element;
    if (common.cols == box.cols) {
      read_held(held, common, first);
      continue;
    }
    std::vector<std::byte> piece(static_cast<std::size_t>(common.area() * element));
    read_held(held, common, piece.data());
    const auto run = static_cast<std::size_t>(common.cols * element);
    for (std::int64_t row = 0; row < common.rows; ++row) {
      std::memcpy(first + row * box.cols * element, piece.data() + static_cast<std::size_t>(row) * run, run);
    }
  }
  if (left != 0) {
    throw InternalError(fmt::format("{}: {} of tensor {} is not there as a whole", checkpoint_.path,
                                    box.to_string(), catalog_[tensor].name));
  }
}

void BoundReader::read_held(const HeldBox& held, const Box& box, std::byte* to) const {
  const StoredTensor& stored = checkpoint_.tensors[held.buffer];
  if (held.turned > 0) return read_turned(stored, held, box, to);
  if (const std::int64_t cols = held.pitch / dtype_bytes(stored.dtype); cols != stored.shape.cols()) {
    StoredTensor in_other_rows = stored;
    in_other_rows.shape = {stored.shape.elements() / cols, cols};
    return read_stored(in_other_rows, held, box, to);
  }
  read_stored(stored, held, box, to);
}

void BoundReader::read_stored(const StoredTensor& stored, const HeldBox& held, const Box& box,
                              std::byte* to) const {
  read_cast_to(stored, held, stored_box(stored, held, box), to);
}

void BoundReader::read_turned(const StoredTensor& stored, const HeldBox& held, const Box& box,
                              std::byte* to) const {
  // Squares of both sides, so that lines of memory that were touched are still near.
  constexpr std::int64_t kSquare = 64;
  const std::int64_t element = dtype_bytes(catalog_[held.tensor].dtype);
  StoredTensor columns = stored;
  columns.shape = {held.box.cols, held.box.rows};
  const std::int64_t first_col = box.col - held.box.col;
  std::vector<std::byte> read;
  for (std::int64_t kind = 0; kind < held.turned; ++kind) {
    const std::int64_t first = first_of_kind(first_col, kind, held.turned);
    const std::int64_t count = first_of_kind(first_col + box.cols, kind, held.turned) - first;
    if (count == 0) continue;
    const std::int64_t row = kind * (held.box.cols / held.turned) + first;
    read.resize(static_cast<std::size_t>(count * box.rows * element));
    read_cast_to(columns, held, {row, count, box.row - held.box.row, box.rows}, read.data());
    for (std::int64_t i = 0; i < count; i += kSquare) {
      for (std::int64_t r = 0; r < box.rows; r += kSquare) {
        for (std::int64_t col = i; col < std::min(count, i + kSquare); ++col) {
          const std::int64_t there = (first + col) * held.turned + kind - first_col;
          for (std::int64_t at = r; at < std::min(box.rows, r + kSquare); ++at) {
            std::memcpy(to + (at * box.cols + there) * element, read.data() + (col * box.rows + at) * element,
                        static_cast<std::size_t>(element));
          }
        }
      }
    }
  }
}

void BoundReader::read_cast_to(const StoredTensor& stored, const HeldBox& held, const Box& place,
                               std::byte* to) const {
  const Cast cast = cast_between(stored.dtype, catalog_[held.tensor].dtype);
  if (held.less_one) {
    read_one_more(stored, place, catalog_[held.tensor].dtype, to);
  } else if (cast == Cast::kRound) {
    read_cast(stored, place, to);
  } else if (cast == Cast::kWiden) {
    read_widened(stored, place, to);
  } else {
    reader_.read(stored, place, bytes_at(to, place.area() * dtype_bytes(stored.dtype)));
  }
}

std::optional<FilePlace> BoundReader::locate(std::uint32_t tensor, const Box& box) const {
  const std::span<const HeldBox> boxes = held_.of(tensor);
  const auto whole =
      std::find_if(boxes.begin(), boxes.end(), [&](const HeldBox& held) { return held.box.contains(box); });
  if (whole == boxes.end()) return std::nullopt;
  const StoredTensor& stored = checkpoint_.tensors[whole->buffer];
  const std::int64_t element = dtype_bytes(stored.dtype);
  const bool as_wanted = cast_between(stored.dtype, catalog_[tensor].dtype) == Cast::kNone &&
                         !whole->less_one && whole->turned == 0;
  const bool dense = box.rows == 1 || box.cols * element == whole->pitch;
  if (stored.through_library() || !as_wanted || !dense) return std::nullopt;
  return FilePlace{stored.file, stored.offset + whole->at(box.row, box.col, element)};
}

bool BoundReader::divisible(std::uint32_t tensor) const {
  const std::span<const HeldBox> boxes = held_.of(tensor);
  return std::none_of(boxes.begin(), boxes.end(), [&](const HeldBox& held) {
    return held.turned > 0 || checkpoint_.tensors[held.buffer].through_library();
  });
}

void BoundReader::read_one_more(const StoredTensor& stored, const Box& box, DType wanted,
                                std::byte* to) const {
  // There are few such elements in a model.
  const std::int64_t element = dtype_bytes(stored.dtype);
  std::vector<std::byte> read(static_cast<std::size_t>(box.area() * element));
  reader_.read(stored, box, read);
  one_more_row(read.data(), element, read.data(), box.area());
  if (stored.dtype == wanted) {
    std::copy(read.begin(), read.end(), to);
    return;
  }
  for (std::int64_t i = 0; i < box.area(); ++i) {
    float value = 0;
    std::memcpy(&value, read.data() + 4 * i, 4);
    const std::uint16_t bits = bf16_bits(value);
    std::memcpy(to + 2 * i, &bits, 2);
  }
}

void BoundReader::read_widened(const StoredTensor& stored, const Box& box, std::byte* to) const {
  // Read into the second half, which the first overtakes only where it has been read.
  std::byte* const narrow = to + box.area() * 2;
  reader_.read(stored, box, bytes_at(narrow, box.area() * 2));
  for (std::int64_t i = 0; i < box.area(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, narrow + 2 * i, 2);
    const float value = bf16_value(bits);
    std::memcpy(to + 4 * i, &value, 4);
  }
}

void BoundReader::read_cast(const StoredTensor& stored, const Box& box, std::byte* to) const {
  constexpr std::int64_t kElements = kCastScratchBytes / 4;
  static const std::unique_ptr<Executor> executor = make_host_executor();
  // Each thread keeps its own.
  thread_local HostBuffer buffer(kCastScratchBytes, "casting float32 tensors");
  const std::byte* const scratch = buffer.data();
  // Pieces of whole rows, or runs of columns when a single row is larger than the scratch.
  const std::int64_t cols = std::min(box.cols, kElements);
  const std::int64_t rows = std::max<std::int64_t>(1, kElements / box.cols);
  for (std::int64_t row = 0; row < box.rows; row += rows) {
    for (std::int64_t col = 0; col < box.cols; col += cols) {
      const Box piece{box.row + row, std::min(rows, box.rows - row), box.col + col,
                      std::min(cols, box.cols - col)};
      reader_.read(stored, piece, bytes_at(buffer.data(), piece.area() * 4));
      const Move cast{0, piece.cols * 4,    (row * box.cols + col) * 2, piece.rows, piece.cols * 2,
                      0, MoveOp::kF32ToBF16};
      executor->pack({&cast, 1}, {&scratch, 1}, to);
    }
  }
}

}  // namespace weightcast
