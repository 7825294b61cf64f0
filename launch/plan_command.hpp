#pragma once

#include <functional>

#include "launch/files/output_file.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "plan/topology.hpp"

namespace weightcast {

/// What `plan` does; `look` is given what the options name before a plan is made of it, and may refuse it.
/// Throws as a command does.
void report_plan(const Options& options, OutputFile* json,
                 const std::function<void(const Model&, const Topology&)>& look);

}  // namespace weightcast
