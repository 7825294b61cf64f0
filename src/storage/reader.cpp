#include "storage/reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "storage/hdf5_slab.hpp"
#include "storage/input_file.hpp"
#include "storage/local_files.hpp"

namespace weightcast {

namespace {

// A cut is read run by run when at most one byte in four is wanted and the rest of a row is this long: then a
// system call costs less than moving the bytes that nobody wants.
constexpr std::int64_t kSkipWorthwhile = std::int64_t{32} << 10;

// Where a box's bytes lie in a file: `rows` runs of `run` bytes, `pitch` apart.
struct Runs {
  std::int64_t offset = 0;
  std::int64_t rows = 0;
  std::int64_t run = 0;
  std::int64_t pitch = 0;
};

Runs runs_of(const StoredTensor& tensor, const Box& box) {
  const std::int64_t element = dtype_bytes(tensor.dtype);
  const std::int64_t pitch = tensor.shape.cols() * element;
  return {tensor.offset + box.row * pitch + box.col * element, box.rows, box.cols * element, pitch};
}

void read_run_by_run(const InputFile& file, const Runs& runs, std::span<std::byte> to,
                     std::string_view what) {
  const auto run = static_cast<std::size_t>(runs.run);
  for (std::int64_t row = 0; row < runs.rows; ++row) {
    file.read_at(runs.offset + row * runs.pitch, to.subspan(static_cast<std::size_t>(row) * run, run), what);
  }
}

// Kept by each thread. Small enough for a second-level cache: what is picked from there is still near.
std::span<std::byte> scratch(std::int64_t bytes) {
  thread_local std::vector<std::byte> buffer;
  if (static_cast<std::int64_t>(buffer.size()) < bytes) buffer.resize(static_cast<std::size_t>(bytes));
  return {buffer.data(), static_cast<std::size_t>(bytes)};
}

// Reads as many rows at a time as fit in the scratch buffer, from the first wanted byte to the last, and
// picks the wanted columns from there.
void read_through_scratch(const InputFile& file, const Runs& runs, std::span<std::byte> to,
                          std::string_view what) {
  const std::int64_t rows_at_once = std::min(runs.rows, CheckpointReader::kScratchBytes / runs.pitch);
  const auto run = static_cast<std::size_t>(runs.run);
  std::byte* next = to.data();
  for (std::int64_t row = 0; row < runs.rows; row += rows_at_once) {
    const std::int64_t rows = std::min(rows_at_once, runs.rows - row);
    const auto span = scratch((rows - 1) * runs.pitch + runs.run);
    file.read_at(runs.offset + row * runs.pitch, span, what);
    for (std::int64_t i = 0; i < rows; ++i, next += run) std::memcpy(next, span.data() + i * runs.pitch, run);
  }
}

void read_runs(const InputFile& file, const Runs& runs, std::span<std::byte> to, std::string_view what) {
  const std::int64_t skipped = runs.pitch - runs.run;
  if (skipped == 0 || runs.rows == 1) {
    file.read_at(runs.offset, to, what);
  } else if (runs.pitch > CheckpointReader::kScratchBytes ||
             (skipped >= kSkipWorthwhile && runs.pitch / 4 >= runs.run)) {
    read_run_by_run(file, runs, to, what);
  } else {
    read_through_scratch(file, runs, to, what);
  }
}

}  // namespace

struct CheckpointReader::Files {
  struct Entry {
    std::once_flag opened;
    std::optional<InputFile> file;
    std::atomic<bool> is_open = false;
    std::unique_ptr<Hdf5SlabReader> slabs;  // guarded by the Hdf5Lock
  };

  const Checkpoint* checkpoint = nullptr;
  std::vector<Entry> entries;
  std::atomic<bool> any_virtual = false;  // has been read

  const InputFile& input(std::uint32_t file) {
    Entry& entry = entries.at(file);
    std::call_once(entry.opened, [&] {
      InputFile opened(checkpoint->files[file].path);
      require_still(opened, checkpoint->files[file]);
      entry.file.emplace(std::move(opened));
      entry.is_open.store(true, std::memory_order_release);
    });
    return *entry.file;
  }

  void require_unchanged() const {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (!entries[i].is_open.load(std::memory_order_acquire)) continue;
      require_still(*entries[i].file, checkpoint->files[i]);
      require_not_replaced(checkpoint->files[i]);
      // The library opens the sources of virtual datasets again and again, by their paths.
      if (any_virtual)
        require_same_file(InputFile(checkpoint->files[i].path).identity(), checkpoint->files[i]);
    }
    require_texts_unchanged(*checkpoint);
  }

  void read_slab(const StoredTensor& tensor, const Box& box, std::span<std::byte> to) {
    const Hdf5Lock lock;
    if (tensor.offset == StoredTensor::kVirtual && !any_virtual) {
      for (std::uint32_t file = 0; file < entries.size(); ++file) input(file);
      any_virtual = true;
    }
    auto& slabs = entries.at(tensor.file).slabs;
    if (slabs == nullptr) {
      input(tensor.file);  // compares the file, and is looked at after the last read
      slabs = std::make_unique<Hdf5SlabReader>(checkpoint->files[tensor.file]);
    }
    try {
      slabs->read(tensor, box, to);
    } catch (const InputError&) {
      require_unchanged();  // it is not damaged but another one by now
      throw;
    }
  }
};

CheckpointReader::CheckpointReader(const Checkpoint& checkpoint) : files_(std::make_unique<Files>()) {
  files_->checkpoint = &checkpoint;
  files_->entries = std::vector<Files::Entry>(checkpoint.files.size());
}

CheckpointReader::~CheckpointReader() {
  const Hdf5Lock lock;
  files_.reset();
}

void CheckpointReader::read(const StoredTensor& tensor, const Box& box, std::span<std::byte> to) const {
  files_->checkpoint->require_readable(tensor);
  const bool sound = box.row >= 0 && box.rows >= 0 && box.col >= 0 && box.cols >= 0;
  if (!sound || !Box::whole(tensor.shape).contains(box)) {
    throw InternalError(fmt::format("{} of tensor '{}' asked for, whose shape is {}", box.to_string(),
                                    tensor.name, tensor.shape.to_string()));
  }
  const std::int64_t bytes = box.area() * dtype_bytes(tensor.dtype);
  if (static_cast<std::int64_t>(to.size()) != bytes) {
    throw InternalError(
        fmt::format("{} bytes of room for {} bytes of tensor '{}'", to.size(), bytes, tensor.name));
  }
  if (tensor.file >= files_->entries.size()) {
    throw InternalError(
        fmt::format("tensor '{}' is in file {} of {}", tensor.name, tensor.file, files_->entries.size()));
  }
  if (bytes == 0) return;
  if (tensor.through_library()) {
    files_->read_slab(tensor, box, to);
  } else {
    read_runs(files_->input(tensor.file), runs_of(tensor, box), to, tensor.name);
  }
}

void CheckpointReader::require_unchanged() const {
  files_->require_unchanged();
}

void CheckpointReader::read(const FilePlace& place, std::span<const ReadPart> parts) const {
  files_->input(place.file).read_at(place.offset, parts);
}

}  // namespace weightcast
