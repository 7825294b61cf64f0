#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"

namespace weightcast {

/// The answer in a few `#` lines: who sends how much to how many, who has most to do, in how many steps, and
/// the seconds that it takes at least where a rank's link carries `link_gbps` Gbit/s each way.
std::string plan_summary(const Plan& plan, std::optional<double> link_gbps);

/// The seconds in which the rank with most to send or to receive does that alone.
double least_seconds(const Plan& plan, double link_gbps);

/// What trainers send and inference ranks receive: the least, the median and the most of each role, then the
/// ranks and routes with most, or all of them.
std::string plan_tables(const Plan& plan, bool all);

/// What one rank does.
std::string rank_plan_text(const Plan& plan, const RankPlan& rank_plan, std::int64_t rank);

}  // namespace weightcast
