#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "faults/fault.hpp"
#include "faults/place.hpp"

namespace weightcast::faults {

/// One fault: at which call of which rank, and what happens there.
struct Fault {
  Call call = Call::kOpen;
  Deed deed = Deed::kKill;
  int rank = 0;
  std::int64_t number = 0;
  std::int64_t value = 0;  ///< an errno, or milliseconds
  bool of_source = false;  ///< only files of the source count

  /// `kill:write`
  std::string kind() const;
  /// `rank 2: kill at its write 17`
  std::string words() const;
};

/// How a job with a fault ended, and what it broke of what is promised.
struct Trial {
  std::uint64_t seed = 0;
  std::string scenario;
  Fault fault;
  bool happened = false;  ///< whether the job came to that call
  double seconds = 0;     ///< from the fault to the end of the job
  int code = 0;           ///< its exit code, or 128 and the signal that ended it
  std::vector<std::string> broken;
  std::string output;  ///< where something is broken: what the job said
};

/// A scenario that faults are done to one behind the other.
class Campaign {
 public:
  /// `deadline`: seconds that a phase of a job may take. `only`: of a fault as Fault::kind says it, its
  /// beginning; all with nothing.
  Campaign(const Scenario& scenario, int deadline, std::string only);

  /// The fault of a seed: the same for the same program on the same kind of machine, because it chooses among
  /// the calls that a job without a fault makes.
  Fault fault_of(std::uint64_t seed) const;

  /// Does it, judges it, and puts the earlier version back.
  Trial try_out(std::uint64_t seed);

 private:
  using Counts = std::array<std::int64_t, kCallNames.size()>;
  std::vector<Counts> count(const std::string& path) const;
  test_support::CommandLine command(const std::string& path) const;
  std::int64_t when_hit(int rank) const;
  void judge(const Fault& fault, const test_support::Outcome& outcome, Trial& trial) const;

  int deadline_;
  std::string only_;
  Place place_;
  std::string record_ = place_.folder() + "/record";
  std::vector<Counts> all_;        ///< by rank: calls on all files of the place
  std::vector<Counts> of_source_;  ///< on files of the source that is brought
};

}  // namespace weightcast::faults
