#pragma once

#include "control/control.hpp"
#include "launch/options.hpp"

namespace weightcast {

/// `bench --layouts`: times the unpack alone of one layer's experts on one rank, in every MoE layout, as
/// values and in every quantiser that the layout takes, beside a plain copy and, where rows change their
/// places, beside the way through an index (measure/row_index.hpp). Collective; throws as a command does.
void run_layout_bench(Control& control, const Options& options);

}  // namespace weightcast
