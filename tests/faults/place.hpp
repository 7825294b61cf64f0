#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "support/process.hpp"
#include "support/temp_dir.hpp"

namespace weightcast::faults {

/// A kind of job that faults are done to. It brings version 1 to where version 0 is.
struct Scenario {
  std::string_view name;
  int ranks = 0;     ///< of mpirun; 0: a plain command
  int trainers = 0;  ///< the first so many of them
  std::string_view inference;
  std::string_view
      format;  ///< of the shards: `hdf5`, `safetensors`; of a plain command, the suffix of what it writes
};

/// All kinds.
const std::vector<Scenario>& scenarios();

/// A folder in which such a job runs: sources of both versions, and shards of version 0.
class Place {
 public:
  explicit Place(const Scenario& scenario);

  /// The job. Its phases may take `deadline` seconds.
  test_support::CommandLine command(int deadline) const;

  /// Puts version 0 back, by a job without faults, which has to succeed and to leave nothing else. What is
  /// wrong with that, or nothing.
  std::string put_back();

  /// The version that is there, whole and equal to its source; nothing where there is none, or one that
  /// verify refuses.
  std::optional<int> version() const;

  /// Files of the sink or beside the output that no version has, by name.
  std::vector<std::string> litter() const;

  /// Processes that have to do with this folder and still run.
  std::vector<std::string> processes() const;

  /// What the job's report says of its end: `done`, for example; `missing` and `damaged` where there is none
  /// that says it. Of a plain command nothing.
  std::string report_status() const;

  std::string folder() const { return folder_.string(); }
  /// Paths that contain it are sources of the version that is brought.
  std::string new_source() const { return folder_ / "source-1"; }
  const Scenario& scenario() const { return scenario_; }

 private:
  test_support::CommandLine command_for(int version) const;
  std::string sink() const { return folder_ / "out"; }
  std::string report() const { return folder_ / "report.json"; }

  Scenario scenario_;
  test_support::TempDir folder_;
};

}  // namespace weightcast::faults
