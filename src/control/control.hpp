#pragma once

#include <chrono>
#include <cstddef>
#include <string>

#include "control/agreement.hpp"
#include "control/call_off.hpp"
#include "control/deadline.hpp"
#include "control/last_words.hpp"
#include "control/neighbours.hpp"
#include "control/this_rank.hpp"
#include "control/watchdog.hpp"

namespace weightcast {

/// What keeps the ranks of a job together. Each part uses those above it.
struct Control {
  /// Collective. `timeout` bounds each phase (the start, one update). `watchdog` ends a rank that does not
  /// even poll; it must outlive the control. `piece` as for Agreement.
  Control(MPI_Comm world, std::chrono::seconds timeout, Watchdog& watchdog,
          std::size_t piece = Agreement::kMostElements)
      : self(world),
        neighbours(self),
        last_words(self, neighbours, watchdog),
        deadline(self, neighbours, last_words, watchdog, timeout),
        agreement(self, deadline, last_words, piece),
        call_off(self, agreement) {}
  ~Control() = default;
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  int rank() const { return self.rank; }
  int size() const { return self.size; }
  MPI_Comm comm() const { return self.comm.get(); }
  const std::string& host() const { return self.host; }

  const ThisRank self;
  const Neighbours neighbours;
  LastWords last_words;
  Deadline deadline;
  Agreement agreement;
  CallOff call_off;
};

}  // namespace weightcast
