#pragma once

#include <chrono>
#include <functional>

#include "control/control.hpp"
#include "control/watchdog.hpp"
#include "world.hpp"

namespace weightcast::mpi_test {

/// As on_ranks, with a control over those ranks whose phases may last `timeout` and
/// whose messages have at most `piece` elements.
inline void under_control(int ranks, const std::function<void(Control&)>& body,
                          std::chrono::seconds timeout = std::chrono::seconds(60),
                          std::size_t piece = Agreement::kMostElements) {
  on_ranks(ranks, [&](MPI_Comm comm) {
    Watchdog watchdog("test", timeout, 0);
    Control control(comm, timeout, watchdog, piece);
    body(control);
  });
}

}  // namespace weightcast::mpi_test
