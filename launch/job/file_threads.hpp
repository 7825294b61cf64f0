#pragma once

#include "control/control.hpp"

namespace weightcast {

/// Threads for the files of a rank: the cores that it may use, shared among the ranks of the node that are
/// `busy`, too, unless the launcher has given each its own. One on a rank that is not. Collective.
int file_threads(Control& control, bool busy);

}  // namespace weightcast
