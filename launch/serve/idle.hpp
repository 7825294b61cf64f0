#pragma once

#include <functional>
#include <span>
#include <vector>

#include "control/control.hpp"
#include "launch/serve/next_order.hpp"
#include "launch/serve/sight.hpp"
#include "sys/mpi.hpp"

namespace weightcast {

/// How ranks wait between updates: asleep but for a look every millisecond or so. Each tells rank 0 what it
/// sees of its exporters, and rank 0 tells all what to do next. It counts against no deadline.
class Idle {
 public:
  /// Collective. `control` must outlive this.
  explicit Idle(Control& control);

  /// Waits for an order. `phase`, a literal, is what this rank waits for. `look` says what it sees. `decide`,
  /// on rank 0, is given what all see, when all have said so, and sleeps for a moment before it says that
  /// there is nothing to do. Collective.
  Order wait(const char* phase, const std::function<Sight()>& look,
             const std::function<Order(std::span<const Sight> sights)>& decide);

 private:
  Order decide_for_all(const std::function<Sight()>& look,
                       const std::function<Order(std::span<const Sight> sights)>& decide);
  Order hear_order(const std::function<Sight()>& look);
  /// Takes in what other ranks have told.
  void hear_sights();
  void tell(const Sight& sight);
  void keep_time();

  Control& control_;
  Communicator comm_;  ///< of its own: what ranks see must not meet an agreement's messages
  std::int64_t round_ = 0;
  std::vector<Sight> sights_;  ///< of all ranks, on rank 0
  const char* phase_ = "";
  std::chrono::steady_clock::time_point phase_begins_;
};

}  // namespace weightcast
