#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "measure/measured.hpp"
#include "memory/host_buffer.hpp"
#include "plan/held_weights.hpp"
#include "session/session.hpp"
#include "source/source.hpp"
#include "storage/checkpoint.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

/// The parts of an update from files one by one, all into the memory that the update reads into: plain
/// positional reads of the same bytes, the HDF5 library, what the source makes of it without sending, and
/// sending without reading.
class FileGauges {
 public:
  /// `source` reads `checkpoint`, which has `weights` (Binding::held), with `threads` threads; null on a rank
  /// that is no trainer. An update from it has been made. All references must outlive this. Collective.
  FileGauges(Control& control, Session& session, const Checkpoint& checkpoint, const HeldWeights& weights,
             Source* source, int threads, bool with_digests);

  /// Measures everything once more; the slowest rank's times. Collective.
  void measure();

  /// In the order in which they are measured; those without times do not apply. Rates are of all trainers
  /// together.
  std::vector<const Measured*> rows() const;
  /// Plain positional reads, at the best of their sizes; null when nothing can be read so.
  const Measured* plain_reads() const;
  /// Seconds of reading and sending one after the other.
  double parts_seconds() const { return reading_.median_seconds() + sending_.median_seconds(); }

 private:
  /// A run of bytes of file number `file`.
  struct Run {
    std::uint32_t file = 0;
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
  };

  void find_what_is_read(const HeldWeights& weights);
  void read_plainly(std::int64_t step) const;
  void read_through_library();
  void read_alone(std::span<std::uint64_t> digests);
  /// Times what a trainer does. Collective.
  void note(Measured& measured, const std::function<void()>& work);
  /// Sum over all ranks. Collective.
  std::int64_t sum(std::int64_t value);

  Control& control_;
  Session& session_;
  const Checkpoint& checkpoint_;
  Source* source_;
  int threads_;
  bool with_digests_;
  std::vector<Run> runs_;                      ///< what plain reads read
  std::vector<const StoredTensor*> datasets_;  ///< what the library reads
  std::vector<InputFile> files_;
  HostBuffer dataset_;  ///< for the largest of them
  std::unique_ptr<Source> staged_;
  std::vector<std::uint64_t> digests_;

  std::vector<std::int64_t> steps_;
  std::vector<Measured> plain_;  ///< by step
  Measured library_;
  Measured reading_;
  Measured digesting_;
  Measured sending_;
};

}  // namespace weightcast
