#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/executor.hpp"
#include "model/catalog.hpp"
#include "plan/plan.hpp"
#include "source/bound_reader.hpp"
#include "source/source.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

/// A checkpoint on disk: each bucket's boxes are read straight into the staging buffer that is sent, by
/// several threads at once, which go on with the next bucket that was begun.
class FileSource final : public HostSource {
 public:
  /// `held` is what `checkpoint` has (Binding::held). All arguments must outlive the source. `readers` reads
  /// for this source alone until it is destroyed.
  FileSource(const Plan& plan, const Catalog& catalog, const Checkpoint& checkpoint, const HeldWeights& held,
             ThreadPool& readers);

  void find_largest(std::int64_t trainer, std::span<float> largest,
                    const std::function<void()>& poll) override;
  bool reads_files() const override { return true; }
  void require_unchanged() const override { reader_.require_unchanged(); }
  void begin_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;
  void finish_bucket(std::uint32_t bucket, std::byte* staging, std::span<std::uint64_t> digests) override;
  void drop_bucket(std::uint32_t bucket) noexcept override;

 private:
  /// Some rows of a segment.
  struct Portion {
    std::uint32_t segment = 0;
    Box box;
    std::int64_t offset = 0;       ///< of the first value in the bucket, where values travel
    std::int64_t bytes = 0;        ///< of values
    std::optional<FilePlace> run;  ///< where its bytes lie as they are wanted, if they do
    std::uint64_t digest = 0;      ///< of values or codes
    std::uint64_t scales_digest = 0;
  };
  /// Portions that one request reads.
  struct Task {
    std::size_t first = 0;
    std::size_t portions = 0;
    std::int64_t bytes = 0;
  };
  /// A bucket on its way into staging.
  struct Reading {
    std::uint32_t bucket = 0;
    std::byte* staging = nullptr;
    bool digests = false;
    std::vector<Portion> portions;
    std::vector<Task> tasks;
    std::optional<ThreadPool::Job> job;  // last: it ends before what it uses
  };

  void cut_into_portions(std::uint32_t bucket, std::vector<Portion>& portions) const;
  static void merge_into_tasks(Reading& reading);
  void read(Reading& reading, const Task& task) const;
  /// Reads portions that travel as values, neighbours in their file, straight to where they travel.
  void read_values(const Reading& reading, std::span<Portion> portions) const;
  /// Reads the values of a portion that travels as codes, and puts these where they belong.
  void read_and_quantize(const Reading& reading, Portion& portion, const CodesForm& form) const;
  /// The digests of the codes and scales that the values of a portion, which travel, become.
  void digest_quantized(const Reading& reading, Portion& portion) const;

  const Plan& plan_;
  const Catalog& catalog_;
  BoundReader reader_;
  ThreadPool& readers_;
  std::unique_ptr<Executor> executor_;
  std::list<Reading> spare_;  ///< they keep their capacity
  std::list<Reading> begun_;  ///< oldest first
};

}  // namespace weightcast
