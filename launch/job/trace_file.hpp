#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "launch/files/output_file.hpp"
#include "report/trace.hpp"
#include "report/update_report.hpp"
#include "session/session.hpp"

namespace weightcast {

/// The file of `--trace`: what every rank did with every bucket, update by update.
class TraceFile {
 public:
  /// From now on the session notes what happens. `control`, `session` and `file`, which rank 0 has, must
  /// outlive this.
  TraceFile(Control& control, const Session& session, OutputFile* file);

  /// Takes in the last update, whose trainers have read files or have not. Collective.
  void add(std::int64_t version, bool from_files);

  /// Writes the file, on rank 0; throws (by agreement) IoError. Collective.
  void write(const JobReport& report);

 private:
  using Clock = std::chrono::steady_clock;

  Control& control_;
  const Session& session_;
  OutputFile* file_;
  Clock::time_point start_ = Clock::now();
  std::vector<RankTrace> traces_;  ///< on rank 0
};

}  // namespace weightcast
