#include "session/file_source.hpp"

#include <algorithm>
#include <functional>

#include "core/hash.hpp"
#include "kernels/digest.hpp"

namespace weightcast {

namespace {

// Large enough that a system call is nothing beside it, small enough that threads end a bucket together and
// find in their caches what they digest.
constexpr std::int64_t kTaskBytes = std::int64_t{1} << 20;

}  // namespace

FileSource::FileSource(const Plan& plan, const Catalog& catalog, const Checkpoint& checkpoint,
                       const Binding& binding, Team& readers)
    : plan_(plan), catalog_(catalog), reader_(catalog, checkpoint, binding), readers_(readers) {}

void FileSource::pack(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) {
  cut_into_tasks(plan_.buckets[bucket]);
  const auto read_task = [&](std::size_t i) { read(tasks_[i], staging, !digests.empty()); };
  readers_.run(tasks_.size(), std::ref(read_task));
  if (digests.empty()) return;
  // Digests of parts add up to that of the whole.
  for (const Task& task : tasks_) digests[task.segment] = 0;
  for (const Task& task : tasks_) digests[task.segment] += task.digest;
}

void FileSource::cut_into_tasks(const Bucket& bucket) {
  tasks_.clear();
  for (std::uint32_t number = bucket.first_segment; number < bucket.first_segment + bucket.segments;
       ++number) {
    const Segment& segment = plan_.segments[number];
    const Box& box = segment.box;
    const std::int64_t row_bytes = box.cols * dtype_bytes(catalog_[segment.tensor].dtype);
    const std::int64_t rows_each =
        reader_.divisible(segment.tensor) ? std::max<std::int64_t>(1, kTaskBytes / row_bytes) : box.rows;
    for (std::int64_t row = 0; row < box.rows; row += rows_each) {
      tasks_.push_back({number,
                        {box.row + row, std::min(rows_each, box.rows - row), box.col, box.cols},
                        segment.offset + row * row_bytes,
                        0});
    }
  }
}

void FileSource::read(Task& task, std::byte* staging, bool digest) const {
  const std::uint32_t number = plan_.segments[task.segment].tensor;
  const Tensor& tensor = catalog_[number];
  std::byte* to = staging + task.offset;
  reader_.read(number, task.box, to);
  if (!digest) return;
  const std::int64_t element = dtype_bytes(tensor.dtype);
  task.digest = digest_box(to, task.box.cols * element, task.box, element, hash_text(tensor.name));
}

}  // namespace weightcast
