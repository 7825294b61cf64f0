#pragma once

#include "control/control.hpp"
#include "launch/options.hpp"
#include "launch/serve/exporter_watch.hpp"
#include "launch/serve/idle.hpp"
#include "plan/topology.hpp"

namespace weightcast {

/// Waits, asleep, until all trainers and engines that the options name as live have published and are alive,
/// for `--wait` seconds at most, and says who is missing meanwhile. Throws (by agreement) TimeoutError naming
/// who is missing, StoppedError. Collective.
void wait_for_exporters(Control& control, const Options& options, const Topology& topology, Idle& idle,
                        ExporterWatch& watch);

}  // namespace weightcast
