#include "source/file_source.hpp"

#include <algorithm>
#include <array>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "kernels/digest.hpp"
#include "plan/quantizing.hpp"

namespace weightcast {

namespace {

// Large enough that a system call is nothing beside it, small enough that threads end an update together and
// find in their caches what they digest.
constexpr std::int64_t kTaskBytes = std::int64_t{1} << 20;

// Most pieces of a request.
constexpr std::size_t kMostPieces = 64;

}  // namespace

FileSource::FileSource(const Plan& plan, const Catalog& catalog, const Checkpoint& checkpoint,
                       const HeldWeights& held, ThreadPool& readers)
    : plan_(plan),
      catalog_(catalog),
      reader_(catalog, checkpoint, held),
      readers_(readers),
      executor_(make_host_executor()) {}

void FileSource::begin_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  if (spare_.empty()) spare_.emplace_back();
  Reading& reading = spare_.front();
  reading.bucket = bucket;
  reading.staging = staging;
  reading.digests = !digests.empty();
  cut_into_pieces(bucket, reading.pieces);
  merge_into_tasks(reading);
  reading.job.emplace(readers_, reading.tasks.size(),
                      [this, &reading](std::size_t i) { read(reading, reading.tasks[i]); });
  begun_.splice(begun_.end(), spare_, spare_.begin());
}

void FileSource::finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  Reading& reading = begun_.front();
  if (reading.bucket != bucket || reading.staging != staging) {
    throw InternalError("buckets of files are not finished in the order in which they were begun");
  }
  reading.job->finish();
  reading.job.reset();
  if (!digests.empty()) {
    // Digests of parts add up to that of the whole.
    const std::size_t scales = plan_.segments.size();
    for (const Piece& piece : reading.pieces) {
      digests[piece.segment] = 0;
      if (plan_.wire[plan_.segments[piece.segment].tensor].quantized()) digests[scales + piece.segment] = 0;
    }
    for (const Piece& piece : reading.pieces) {
      digests[piece.segment] += piece.digest;
      if (piece.scales_digest != 0) digests[scales + piece.segment] += piece.scales_digest;
    }
  }
  spare_.splice(spare_.end(), begun_, begun_.begin());
}

void FileSource::drop_bucket(std::uint32_t bucket) noexcept {
  begun_.remove_if([&](const Reading& reading) { return reading.bucket == bucket; });
}

void FileSource::find_largest(std::int64_t trainer, std::span<float> largest,
                              const std::function<void()>& poll) {
  std::vector<Piece> pieces;
  std::vector<Piece> of_bucket;
  for (std::uint32_t b = 0; b < plan_.buckets.size(); ++b) {
    if (plan_.buckets[b].root != trainer) continue;
    cut_into_pieces(b, of_bucket);
    std::copy_if(of_bucket.begin(), of_bucket.end(), std::back_inserter(pieces), [&](const Piece& piece) {
      return plan_.wire[plan_.segments[piece.segment].tensor].scope != WireForm::kNoScope;
    });
  }
  std::vector<float> of_piece(pieces.size(), 0);
  const auto look_at = [&](std::size_t i) {
    const Piece& piece = pieces[i];
    thread_local std::vector<std::byte> values;
    values.resize(static_cast<std::size_t>(piece.bytes));
    reader_.read(plan_.segments[piece.segment].tensor, piece.box, values.data());
    QuantMove move = quant_move(plan_, catalog_, piece.segment, piece.box);
    move.values = {Space::kStaging, 0, 0, piece.bytes / piece.box.rows};
    move.scope = 0;
    executor_->find_largest({&move, 1}, {{}, values.data()}, {&of_piece[i], 1});
  };
  // Enough to keep all readers busy.
  const std::size_t between_polls = 64 * static_cast<std::size_t>(readers_.threads());
  for (std::size_t first = 0; first < pieces.size(); first += between_polls) {
    poll();
    readers_.run(std::min(between_polls, pieces.size() - first), [&](std::size_t i) { look_at(first + i); });
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    float& all = largest[plan_.wire[plan_.segments[pieces[i].segment].tensor].scope];
    all = std::max(all, of_piece[i]);
  }
}

void FileSource::cut_into_pieces(std::uint32_t bucket_number, std::vector<Piece>& pieces) const {
  pieces.clear();
  const Bucket& bucket = plan_.buckets[bucket_number];
  for (std::uint32_t number = bucket.first_segment; number < bucket.first_segment + bucket.segments;
       ++number) {
    const Segment& segment = plan_.segments[number];
    const Box& box = segment.box;
    const WireForm& form = plan_.wire[segment.tensor];
    const std::int64_t element = dtype_bytes(catalog_[segment.tensor].dtype);
    const std::int64_t row_bytes = box.cols * element;
    // Of a row with one scale all is read, whatever is sent.
    const std::int64_t read_bytes =
        form.whole_rows ? catalog_[segment.tensor].shape.cols() * element : row_bytes;
    const std::int64_t rows_each =
        reader_.divisible(segment.tensor)
            ? std::max(form.unit_rows, kTaskBytes / read_bytes / form.unit_rows * form.unit_rows)
            : box.rows;
    for (std::int64_t row = 0; row < box.rows; row += rows_each) {
      const Box part{box.row + row, std::min(rows_each, box.rows - row), box.col, box.cols};
      // Values that do not travel are not read to where they would.
      pieces.push_back({number, part, segment.offset + row * row_bytes, part.rows * row_bytes,
                        form.travels_as_held() ? reader_.locate(segment.tensor, part) : std::nullopt});
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
  // Only what travels as values has neighbours in its task.
  std::visit(Overloaded{[&](const ValuesForm&) { read_values(reading, pieces); },
                        [&](const CodesForm& form) { read_and_quantize(reading, pieces.front(), form); }},
             plan_.wire[plan_.segments[pieces.front().segment].tensor].kind);
}

void FileSource::read_values(const Reading& reading, std::span<Piece> pieces) const {
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
    if (plan_.wire[tensor_of(piece)].quantized()) {
      digest_quantized(reading, piece);
      continue;
    }
    const std::int64_t element = dtype_bytes(tensor.dtype);
    piece.digest = digest_box(reading.staging + piece.offset, piece.box.cols * element, piece.box, element,
                              hash_text(tensor.name));
  }
}

void FileSource::read_and_quantize(const Reading& reading, Piece& piece, const CodesForm& form) const {
  const Segment& segment = plan_.segments[piece.segment];
  QuantMove move = quant_move(plan_, catalog_, piece.segment, piece.box);
  // Each thread keeps its own. Of a whole row where the scale is that of a whole row.
  thread_local std::vector<std::byte> values;
  Box box = piece.box;
  box.col -= move.cols_before;
  box.cols += move.cols_before + move.cols_behind;
  const std::int64_t element = dtype_bytes(catalog_[segment.tensor].dtype);
  values.resize(static_cast<std::size_t>(box.area() * element));
  reader_.read(segment.tensor, box, values.data());
  const std::byte* const source = values.data();
  move.values = {Space::kSource, 0, move.cols_before * element, box.cols * element};
  move.codes = staged_codes(form, segment);
  move.codes.offset += (move.codes_box.row - form.codes.of(segment.box).row) * move.codes.pitch;
  move.scales = staged_scales(form, segment);
  if (form.scale_bytes > 0) {
    move.scales.offset += (move.scales_box.row - form.scales.of(segment.box).row) * move.scales.pitch;
  }
  QuantDigests digests;
  executor_->quantize({&move, 1}, {{&source, 1}, reading.staging}, scales(),
                      std::span(&digests, reading.digests ? 1 : 0));
  piece.digest = digests.codes;
  piece.scales_digest = digests.scales;
}

void FileSource::digest_quantized(const Reading& reading, Piece& piece) const {
  QuantMove move = quant_move(plan_, catalog_, piece.segment, piece.box);
  move.values = {Space::kStaging, 0, piece.offset, piece.bytes / piece.box.rows};
  QuantDigests digests;
  executor_->quantize({&move, 1}, {{}, reading.staging}, scales(), {&digests, 1});
  piece.digest = digests.codes;
  piece.scales_digest = digests.scales;
}

}  // namespace weightcast
