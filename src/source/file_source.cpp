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

// Most portions of a request.
constexpr std::size_t kMostPortions = 64;

// Of elements as they are.
constexpr std::uint64_t (*kDigestBox)(const std::byte*, std::int64_t, const Box&, std::int64_t,
                                      std::uint64_t) = &digest_box;

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
  cut_into_portions(bucket, reading.portions);
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
    for (const Portion& portion : reading.portions) {
      digests[portion.segment] = 0;
      if (plan_.wire[plan_.segments[portion.segment].tensor].quantized())
        digests[scales + portion.segment] = 0;
    }
    for (const Portion& portion : reading.portions) {
      digests[portion.segment] += portion.digest;
      if (portion.scales_digest != 0) digests[scales + portion.segment] += portion.scales_digest;
    }
  }
  spare_.splice(spare_.end(), begun_, begun_.begin());
}

void FileSource::drop_bucket(std::uint32_t bucket) noexcept {
  begun_.remove_if([&](const Reading& reading) { return reading.bucket == bucket; });
}

void FileSource::find_largest(std::int64_t trainer, std::span<float> largest,
                              const std::function<void()>& poll) {
  std::vector<Portion> portions;
  std::vector<Portion> of_bucket;
  for (std::uint32_t b = 0; b < plan_.buckets.size(); ++b) {
    if (plan_.buckets[b].root != trainer) continue;
    cut_into_portions(b, of_bucket);
    std::copy_if(of_bucket.begin(), of_bucket.end(), std::back_inserter(portions),
                 [&](const Portion& portion) {
                   return plan_.wire[plan_.segments[portion.segment].tensor].scope != WireForm::kNoScope;
                 });
  }
  std::vector<float> of_portion(portions.size(), 0);
  const auto look_at = [&](std::size_t i) {
    const Portion& portion = portions[i];
    thread_local std::vector<std::byte> values;
    values.resize(static_cast<std::size_t>(portion.bytes));
    reader_.read(plan_.segments[portion.segment].tensor, portion.box, values.data());
    QuantMove move = quant_move(plan_, catalog_, portion.segment, portion.box);
    move.values = {Space::kStaging, 0, 0, portion.bytes / portion.box.rows};
    move.scope = 0;
    executor_->find_largest({&move, 1}, {{}, values.data()}, {&of_portion[i], 1});
  };
  // Enough to keep all readers busy.
  const std::size_t between_polls = 64 * static_cast<std::size_t>(readers_.threads());
  for (std::size_t first = 0; first < portions.size(); first += between_polls) {
    poll();
    readers_.run(std::min(between_polls, portions.size() - first),
                 [&](std::size_t i) { look_at(first + i); });
  }
  for (std::size_t i = 0; i < portions.size(); ++i) {
    float& all = largest[plan_.wire[plan_.segments[portions[i].segment].tensor].scope];
    all = std::max(all, of_portion[i]);
  }
}

void FileSource::cut_into_portions(std::uint32_t bucket_number, std::vector<Portion>& portions) const {
  portions.clear();
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
      portions.push_back({number, part, segment.offset + row * row_bytes, part.rows * row_bytes,
                          form.travels_as_held() ? reader_.locate(segment.tensor, part) : std::nullopt});
    }
  }
}

void FileSource::merge_into_tasks(Reading& reading) {
  reading.tasks.clear();
  const std::vector<Portion>& portions = reading.portions;
  for (std::size_t i = 0; i < portions.size(); ++i) {
    const Portion& portion = portions[i];
    if (!reading.tasks.empty()) {
      Task& task = reading.tasks.back();
      const Portion& last = portions[i - 1];
      const bool follows = portion.run && last.run && portion.run->file == last.run->file &&
                           portion.run->offset == last.run->offset + last.bytes;
      if (follows && task.bytes + portion.bytes <= kTaskBytes && task.portions < kMostPortions) {
        ++task.portions;
        task.bytes += portion.bytes;
        continue;
      }
    }
    reading.tasks.push_back({i, 1, portion.bytes});
  }
}

void FileSource::read(Reading& reading, const Task& task) const {
  const std::span<Portion> portions = std::span(reading.portions).subspan(task.first, task.portions);
  // Only what travels as values has neighbours in its task.
  std::visit(Overloaded{[&](const ValuesForm&) { read_values(reading, portions); },
                        [&](const CodesForm& form) { read_and_quantize(reading, portions.front(), form); }},
             plan_.wire[plan_.segments[portions.front().segment].tensor].kind);
}

void FileSource::read_values(const Reading& reading, std::span<Portion> portions) const {
  const Portion& first = portions.front();
  const auto tensor_of = [&](const Portion& portion) { return plan_.segments[portion.segment].tensor; };
  if (first.run) {
    std::array<ReadPart, kMostPortions> parts;
    for (std::size_t i = 0; i < portions.size(); ++i) {
      parts.at(i) = {{reading.staging + portions[i].offset, static_cast<std::size_t>(portions[i].bytes)},
                     catalog_[tensor_of(portions[i])].name};
    }
    reader_.read(*first.run, std::span(parts).first(portions.size()));
  } else {
    reader_.read(tensor_of(first), first.box, reading.staging + first.offset);
  }
  if (!reading.digests) return;
  for (Portion& portion : portions) {
    const Tensor& tensor = catalog_[tensor_of(portion)];
    if (plan_.wire[tensor_of(portion)].quantized()) {
      digest_quantized(reading, portion);
      continue;
    }
    const std::int64_t element = dtype_bytes(tensor.dtype);
    const auto digest_of = plan_.wire[tensor_of(portion)].negated_exp ? &negated_exp_digest : kDigestBox;
    portion.digest = digest_of(reading.staging + portion.offset, portion.box.cols * element, portion.box,
                               element, hash_text(tensor.name));
  }
}

void FileSource::read_and_quantize(const Reading& reading, Portion& portion, const CodesForm& form) const {
  const Segment& segment = plan_.segments[portion.segment];
  QuantMove move = quant_move(plan_, catalog_, portion.segment, portion.box);
  // Each thread keeps its own. Of a whole row where the scale is that of a whole row.
  thread_local std::vector<std::byte> values;
  Box box = portion.box;
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
  portion.digest = digests.codes;
  portion.scales_digest = digests.scales;
}

void FileSource::digest_quantized(const Reading& reading, Portion& portion) const {
  QuantMove move = quant_move(plan_, catalog_, portion.segment, portion.box);
  move.values = {Space::kStaging, 0, portion.offset, portion.bytes / portion.box.rows};
  QuantDigests digests;
  executor_->quantize({&move, 1}, {{}, reading.staging}, scales(), {&digests, 1});
  portion.digest = digests.codes;
  portion.scales_digest = digests.scales;
}

}  // namespace weightcast
