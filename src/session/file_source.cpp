#include "session/file_source.hpp"

#include <algorithm>
#include <array>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "kernels/digest.hpp"

namespace weightcast {

namespace {

// Large enough that a system call is nothing beside it, small enough that threads end an update together and
// find in their caches what they digest.
constexpr std::int64_t kTaskBytes = std::int64_t{1} << 20;

// Most pieces of a request.
constexpr std::size_t kMostPieces = 64;

}  // namespace

FileSource::FileSource(const Plan& plan, const Catalog& catalog, const Checkpoint& checkpoint,
                       const Binding& binding, Team& readers)
    : plan_(plan), catalog_(catalog), reader_(catalog, checkpoint, binding), readers_(readers) {}

void FileSource::begin(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  if (spare_.empty()) spare_.emplace_back();
  Reading& reading = spare_.front();
  reading.bucket = bucket;
  reading.staging = staging;
  reading.digests = !digests.empty();
  cut_into_pieces(reading);
  merge_into_tasks(reading);
  reading.job.emplace(readers_, reading.tasks.size(),
                      [this, &reading](std::size_t i) { read(reading, reading.tasks[i]); });
  begun_.splice(begun_.end(), spare_, spare_.begin());
}

void FileSource::pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  if (begun_.empty()) begin(bucket, staging, digests);
  Reading& reading = begun_.front();
  if (reading.bucket != bucket || reading.staging != staging) {
    throw InternalError("buckets of files are not packed in the order in which they were begun");
  }
  try {
    reading.job->finish();
  } catch (...) {
    drop();
    throw;
  }
  reading.job.reset();
  if (!digests.empty()) {
    // Digests of parts add up to that of the whole.
    for (const Piece& piece : reading.pieces) digests[piece.segment] = 0;
    for (const Piece& piece : reading.pieces) digests[piece.segment] += piece.digest;
  }
  spare_.splice(spare_.end(), begun_, begun_.begin());
}

void FileSource::cut_into_pieces(Reading& reading) const {
  reading.pieces.clear();
  const Bucket& bucket = plan_.buckets[reading.bucket];
  for (std::uint32_t number = bucket.first_segment; number < bucket.first_segment + bucket.segments;
       ++number) {
    const Segment& segment = plan_.segments[number];
    const Box& box = segment.box;
    const std::int64_t row_bytes = box.cols * dtype_bytes(catalog_[segment.tensor].dtype);
    const std::int64_t rows_each =
        reader_.divisible(segment.tensor) ? std::max<std::int64_t>(1, kTaskBytes / row_bytes) : box.rows;
    for (std::int64_t row = 0; row < box.rows; row += rows_each) {
      const Box part{box.row + row, std::min(rows_each, box.rows - row), box.col, box.cols};
      reading.pieces.push_back({number, part, segment.offset + row * row_bytes, part.rows * row_bytes,
                                reader_.locate(segment.tensor, part), 0});
    }
  }
}

void FileSource::merge_into_tasks(Reading& reading) {
  reading.tasks.clear();
  const std::vector<Piece>& pieces = reading.pieces;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    if (!reading.tasks.empty()) {
      Task& task = reading.tasks.back();
      const Piece& last = pieces[i - 1];
      const bool follows = piece.run && last.run && piece.run->file == last.run->file &&
                           piece.run->offset == last.run->offset + last.bytes;
      if (follows && task.bytes + piece.bytes <= kTaskBytes && task.pieces < kMostPieces) {
        ++task.pieces;
        task.bytes += piece.bytes;
        continue;
      }
    }
    reading.tasks.push_back({i, 1, piece.bytes});
  }
}

void FileSource::read(Reading& reading, const Task& task) const {
  const std::span<Piece> pieces = std::span(reading.pieces).subspan(task.first, task.pieces);
  const Piece& first = pieces.front();
  const auto tensor_of = [&](const Piece& piece) { return plan_.segments[piece.segment].tensor; };
  if (first.run) {
    std::array<ReadPart, kMostPieces> parts;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      parts.at(i) = {{reading.staging + pieces[i].offset, static_cast<std::size_t>(pieces[i].bytes)},
                     catalog_[tensor_of(pieces[i])].name};
    }
    reader_.read(*first.run, std::span(parts).first(pieces.size()));
  } else {
    reader_.read(tensor_of(first), first.box, reading.staging + first.offset);
  }
  if (!reading.digests) return;
  for (Piece& piece : pieces) {
    const Tensor& tensor = catalog_[tensor_of(piece)];
    const std::int64_t element = dtype_bytes(tensor.dtype);
    piece.digest = digest_box(reading.staging + piece.offset, piece.box.cols * element, piece.box, element,
                              hash_text(tensor.name));
  }
}

}  // namespace weightcast
