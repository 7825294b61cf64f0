#include "measure/file_gauges.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <thread>

#include "core/units.hpp"
#include "storage/hdf5_file.hpp"
#include "storage/hdf5_header.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {

namespace {

/// Sends what staging holds, whatever it is.
class StagedSource final : public HostSource {
 public:
  void find_largest(std::int64_t /*trainer*/, std::span<float> /*largest*/,
                    const std::function<void()>& /*poll*/) override {}
  void finish_bucket(std::uint32_t /*bucket*/, std::byte* /*staging*/,
                     std::span<std::uint64_t> /*digests*/) override {}
};

}  // namespace

FileGauges::FileGauges(Control& control, Session& session, const Checkpoint& checkpoint,
                       const HeldWeights& weights, Source* source, int threads, bool with_digests)
    : control_(control),
      session_(session),
      checkpoint_(checkpoint),
      source_(source),
      threads_(threads),
      with_digests_(with_digests),
      digests_(session.plan().digests()) {
  std::array<std::int64_t, 1> hdf5{0};
  control_.agreement.together([&] {
    if (source_ == nullptr) return;
    staged_ = std::make_unique<StagedSource>();
    find_what_is_read(weights);
    hdf5[0] = has_hdf5_signature(checkpoint_.files.front().path) ? 1 : 0;
  });
  control_.agreement.maximum(std::span<std::int64_t>(hdf5));
  std::int64_t model_bytes = 0;
  for (const Bucket& bucket : session_.plan().buckets) model_bytes += bucket.bytes;
  std::int64_t own = 0;
  for (const Run& run : runs_) own += run.bytes;
  if (const std::int64_t bytes = sum(own); bytes > 0) {
    for (const std::int64_t step : {1 << 20, 4 << 20, 16 << 20}) {
      steps_.push_back(step);
      plain_.push_back({fmt::format("pread of {}, {} threads", format_bytes(step), threads_), {}, bytes});
    }
  }
  own = 0;
  for (const StoredTensor* dataset : datasets_) own += dataset->bytes();
  library_ = {"HDF5 library, one thread, tensor by tensor", {}, hdf5[0] != 0 ? sum(own) : 0};
  reading_ = {fmt::format("reading alone, {} threads", threads_), {}, model_bytes};
  digesting_ = {"reading alone, with digests", {}, model_bytes};
  sending_ = {"sending alone, from staging", {}, model_bytes};
}

void FileGauges::find_what_is_read(const HeldWeights& weights) {
  for (const CheckpointFile& file : checkpoint_.files) files_.emplace_back(file.path);
  std::vector<bool> wanted(checkpoint_.tensors.size(), false);
  for (const RankBucket& rank_plan : session_.rank_plan().buckets) {
    if (!rank_plan.root) continue;
    const Bucket& bucket = session_.plan().buckets[rank_plan.bucket];
    const auto segments = std::span(session_.plan().segments).subspan(bucket.first_segment, bucket.segments);
    for (const Segment& segment : segments) {
      for (const HeldBox& held : weights.of(segment.tensor)) {
        const Box common = held.box.intersect(segment.box);
        if (common.empty()) continue;
        const StoredTensor& stored = checkpoint_.tensors[held.buffer];
        if (!wanted[held.buffer]) datasets_.push_back(&stored);
        wanted[held.buffer] = true;
        if (stored.through_library()) continue;
        // Of columns as many bytes, but one behind the other: what all columns add up to is the whole.
        const std::int64_t element = dtype_bytes(stored.dtype);
        const std::int64_t col = (common.col - held.box.col) * common.rows;
        const std::int64_t offset =
            held.turned > 0 ? stored.offset + ((common.row - held.box.row) * held.box.cols + col) * element
                            : stored.offset + held.at(common.row, held.box.col, element) + col * element;
        const std::int64_t bytes = common.area() * element;
        if (!runs_.empty() && runs_.back().file == stored.file &&
            runs_.back().offset + runs_.back().bytes == offset) {
          runs_.back().bytes += bytes;
        } else {
          runs_.push_back({stored.file, offset, bytes});
        }
      }
    }
  }
}

void FileGauges::measure() {
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    note(plain_[i], [&] { read_plainly(steps_[i]); });
  }
  if (library_.bytes > 0) {
    control_.agreement.together([&] {
      if (datasets_.empty() || dataset_.bytes() > 0) return;
      const auto* largest = *std::max_element(datasets_.begin(), datasets_.end(),
                                              [](auto* a, auto* b) { return a->bytes() < b->bytes(); });
      dataset_ = HostBuffer(largest->bytes(), "reading through the HDF5 library");
      // The system hands out memory where it is first touched, which is not to be timed.
      std::ranges::fill(dataset_.span(), std::byte{1});
    });
    note(library_, [&] { read_through_library(); });
  }
  note(reading_, [&] { read_alone({}); });
  if (with_digests_) note(digesting_, [&] { read_alone(digests_); });
  Progress silent(ProgressMode::kNever, false);
  sending_.seconds.push_back(session_.update(staged_.get(), 0, false, silent).update);
}

void FileGauges::read_plainly(std::int64_t step) const {
  const std::span<std::byte> ring = session_.pipeline().host_staging();
  struct Request {
    Run run;
    std::int64_t at;  ///< in the ring
  };
  std::vector<Request> requests;
  const std::int64_t most = std::min(step, static_cast<std::int64_t>(ring.size()));
  std::int64_t at = 0;
  for (const Run& run : runs_) {
    for (std::int64_t done = 0; done < run.bytes; done += most) {
      const std::int64_t bytes = std::min(most, run.bytes - done);
      if (at + bytes > static_cast<std::int64_t>(ring.size())) at = 0;
      requests.push_back({{run.file, run.offset + done, bytes}, at});
      at += round_up(bytes, kSegmentAlignment);
    }
  }
  std::atomic<std::size_t> next = 0;
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(threads_));
  const auto read = [&](std::exception_ptr& failure) {
    try {
      for (std::size_t i = next++; i < requests.size(); i = next++) {
        const Run& run = requests[i].run;
        files_[run.file].read_at(
            run.offset,
            ring.subspan(static_cast<std::size_t>(requests[i].at), static_cast<std::size_t>(run.bytes)),
            "its data");
      }
    } catch (...) {
      failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (std::size_t i = 1; i < failures.size(); ++i) {
      helpers.emplace_back([&, i] { read(failures[i]); });
    }
    read(failures.front());
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

void FileGauges::read_through_library() {
  const Hdf5Lock lock;
  const OpenHdf5 file = open_hdf5(checkpoint_.files.front().path);
  for (const StoredTensor* tensor : datasets_) {
    if (tensor->file != 0) continue;  // in a file that the first one names
    const Hdf5Dataset dataset(
        WEIGHTCAST_HDF5(H5Dopen2(file.file.get(), tensor->dataset().c_str(), H5P_DEFAULT), checkpoint_.path));
    const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(dataset.get()), checkpoint_.path));
    WEIGHTCAST_HDF5(H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, dataset_.data()),
                    checkpoint_.path);
  }
}

void FileGauges::read_alone(std::span<std::uint64_t> digests) {
  const Plan& plan = session_.plan();
  const std::span<std::byte> ring = session_.pipeline().host_staging();
  std::vector<std::uint32_t> buckets;
  for (const RankBucket& bucket : session_.rank_plan().buckets) {
    if (bucket.root) buckets.push_back(bucket.bucket);
  }
  const auto slots = static_cast<std::size_t>(plan.limits.buffers);
  const auto slot = [&](std::size_t n) {
    return ring.data() + static_cast<std::int64_t>(n % slots) * plan.slot_bytes;
  };
  std::vector<BegunBucket> reading(slots);  // by staging buffer
  std::size_t begun = 0;
  for (std::size_t n = 0; n < buckets.size(); ++n) {
    for (; begun < std::min(n + slots, buckets.size()); ++begun) {
      reading[begun % slots] = source_->on_host()->begin(buckets[begun], slot(begun), digests);
    }
    reading[n % slots].finish();
  }
}

void FileGauges::note(Measured& measured, const std::function<void()>& work) {
  std::array<double, 1> slowest{0};
  control_.agreement.together([] {});
  control_.agreement.together([&] {
    if (source_ == nullptr) return;
    const auto start = std::chrono::steady_clock::now();
    work();
    slowest[0] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  control_.agreement.maximum(std::span<double>(slowest));
  measured.seconds.push_back(slowest[0]);
}

std::int64_t FileGauges::sum(std::int64_t value) {
  std::array<std::uint64_t, 1> all{static_cast<std::uint64_t>(value)};
  control_.agreement.sum(all);
  return static_cast<std::int64_t>(all[0]);
}

std::vector<const Measured*> FileGauges::rows() const {
  std::vector<const Measured*> rows;
  for (const Measured& plain : plain_) rows.push_back(&plain);
  for (const Measured* measured : {&library_, &reading_, &digesting_, &sending_}) rows.push_back(measured);
  std::erase_if(rows, [](const Measured* measured) { return measured->seconds.empty(); });
  return rows;
}

const Measured* FileGauges::plain_reads() const {
  return plain_.empty() ? nullptr : &fastest(plain_);
}

}  // namespace weightcast
