#pragma once

#include <cstdint>

#include "control/control.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "plan/plan.hpp"
#include "report/update_report.hpp"
#include "session/session.hpp"
#include "session/wire_choice.hpp"

namespace weightcast {

/// What the report says of a model and its plan.
void describe(const Options& options, const Model& model, const Plan& plan, const WireChoice& wire_choice,
              JobReport& report);

/// Which bytes of the engines' parameters that are written take which way. Collective.
void describe_ways(Control& control, const Session& session, JobReport& report);

/// What the start was made of; each part is the slowest rank's.
void describe_start(Control& control, const Session& session, const WireChoice& wire_choice, double seconds,
                    JobReport& report);

/// With stages that overlap perfectly an update takes as long as its slowest stage; that is the bound it is
/// compared with where nobody has measured the wire.
BoundRecord stage_bound(const UpdateSeconds& s, std::int64_t model_bytes);

}  // namespace weightcast
