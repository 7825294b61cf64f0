#pragma once

#include <cstdint>
#include <exception>

#include "control/agreement.hpp"
#include "control/this_rank.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

/// Thrown to leave an update that another rank has called off.
struct CalledOff : std::exception {
  const char* what() const noexcept override { return "another rank has called off the update"; }
};

/// Lets a rank whose wire has failed call off the update that all ranks are in: the others, who wait for what
/// will not come, hear of it and go to the agreement at the update's end.
class CallOff {
 public:
  /// Collective. All references must outlive this.
  CallOff(const ThisRank& self, Agreement& agreement);

  /// What was called off is over, and something new begins: on every rank, in the same order.
  void begin() { ++update_; }

  /// Tells all other ranks. Once an update.
  void announce();

  /// Whether another rank has called off this update; to be asked in polling loops.
  bool heard();

 private:
  const ThisRank& self_;
  Agreement& agreement_;
  Communicator comm_;
  std::int64_t update_ = 0;       ///< the one that all are in
  std::int64_t called_off_ = -1;  ///< the last that another rank has called off
  unsigned polls_ = 0;
};

}  // namespace weightcast
