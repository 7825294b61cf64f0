#include "launch/plan/plan_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/units.hpp"
#include "launch/layout_text.hpp"
#include "plan/steps.hpp"
#include "report/lines.hpp"
#include "report/table.hpp"

namespace weightcast {

namespace {

/// Rows of a table unless all are asked for.
constexpr std::size_t kMostRows = 5;
constexpr const char* kContinued = "#   ";

using Field = std::int64_t Traffic::*;

/// World ranks of a role.
struct Role {
  std::string name;
  std::vector<std::size_t> ranks;
};

Role trainers_of(const Plan& plan) {
  Role role{counted(plan.topology.trainers, "trainer"), {}};
  role.ranks.resize(static_cast<std::size_t>(plan.topology.trainers));
  std::iota(role.ranks.begin(), role.ranks.end(), 0);
  return role;
}

Role inference_of(const Plan& plan) {
  const std::int64_t ranks = plan.topology.engine.ranks();
  Role role{counted(ranks, "inference rank"), {}};
  role.ranks.resize(static_cast<std::size_t>(ranks));
  std::iota(role.ranks.begin(), role.ranks.end(),
            static_cast<std::size_t>(plan.topology.world_rank_of_inference(0)));
  return role;
}

/// The ranks of a role, those with most of a field first.
std::vector<std::size_t> busiest(const Role& role, const std::vector<Traffic>& traffic, Field field) {
  std::vector<std::size_t> ranks = role.ranks;
  std::ranges::stable_sort(ranks, std::greater<>(), [&](std::size_t rank) { return traffic[rank].*field; });
  return ranks;
}

std::int64_t sum(const std::vector<Traffic>& traffic, Field field) {
  return std::accumulate(traffic.begin(), traffic.end(), std::int64_t{0},
                         [&](std::int64_t total, const Traffic& rank) { return total + rank.*field; });
}

std::string steps_line(const Plan& plan) {
  const StepCounts steps = count_steps(plan);
  std::string line = fmt::format(
      "# steps: {}, in each of which a rank sends one bucket at most and gets one; the busiest rank alone "
      "needs {}",
      steps.steps, steps.least);
  if (steps.with_idle_link > 0) {
    line +=
        fmt::format(", and in {} some rank that has a bucket left waits for a partner", steps.with_idle_link);
  }
  return line;
}

std::string bound_line(const Plan& plan, std::optional<double> link_gbps) {
  if (!link_gbps) return "# lower bound in seconds: add --link-gbps N, what a rank's link carries";
  return fmt::format("# lower bound: {:.3g} s at {} Gbit/s a rank, each way (what the busiest needs)",
                     least_seconds(plan, *link_gbps), *link_gbps);
}

/// `least median most` of a field over a role.
void add_spread(Table& table, const Role& role, const std::vector<Traffic>& traffic, const char* what,
                Field field, bool bytes) {
  const std::vector<std::size_t> ranks = busiest(role, traffic, field);
  const auto text = [&](std::size_t rank) {
    const std::int64_t value = traffic[rank].*field;
    return bytes ? format_bytes(value) : std::to_string(value);
  };
  table.add({role.name, what, text(ranks.back()), text(ranks[ranks.size() / 2]), text(ranks.front())});
}

std::string spread_text(const Plan& plan, const std::vector<Traffic>& traffic) {
  Table table({"", "a rank", "least", "median", "most"}, {0, 1});
  const Role trainers = trainers_of(plan);
  const Role inference = inference_of(plan);
  add_spread(table, trainers, traffic, "sends", &Traffic::sent, true);
  add_spread(table, inference, traffic, "receives", &Traffic::received, true);
  if (!plan.topology.colocate) add_spread(table, trainers, traffic, "buckets", &Traffic::buckets, false);
  add_spread(table, inference, traffic, "buckets", &Traffic::buckets, false);
  return table.text();
}

std::string more_text(std::size_t shown, std::size_t all, std::string_view what) {
  if (shown == all) return "";
  const auto more = static_cast<std::int64_t>(all - shown);
  return fmt::format("# and {}; --all lists them\n", counted(more, what));
}

std::string ranks_text(const Plan& plan, const std::vector<Traffic>& traffic, const Role& role, Field field,
                       const char* what, bool all) {
  std::vector<std::size_t> ranks = all ? role.ranks : busiest(role, traffic, field);
  const std::size_t count = ranks.size();
  if (!all) ranks.resize(std::min(count, kMostRows));
  Table table({"rank", what, "buckets", "role"}, {0, 3});
  for (const std::size_t rank : ranks) {
    table.add({std::to_string(rank), format_bytes(traffic[rank].*field),
               std::to_string(traffic[rank].buckets),
               role_of(plan.topology, static_cast<std::int64_t>(rank))});
  }
  return table.text() +
         more_text(ranks.size(), count, field == &Traffic::sent ? "trainer" : "inference rank");
}

/// `2,34,66,… (16)`.
std::string receivers_text(const std::vector<std::int64_t>& receivers) {
  constexpr std::size_t kMostNames = 8;
  std::string names = std::to_string(receivers.front());
  for (std::size_t i = 1; i < std::min(receivers.size(), kMostNames); ++i) {
    names += fmt::format(",{}", receivers[i]);
  }
  return receivers.size() > kMostNames ? fmt::format("{},… ({})", names, receivers.size()) : names;
}

/// The routes, largest first.
std::string routes_text(const Plan& plan, bool all) {
  struct Route {
    std::pair<std::uint32_t, std::uint32_t> ends;  ///< root and destination set
    std::int64_t buckets = 0;
    std::int64_t bytes = 0;
  };
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::size_t> found;
  std::vector<Route> routes;  // in the order of the plan
  for (const Bucket& bucket : plan.buckets) {
    const auto [at, is_new] = found.try_emplace({bucket.root, bucket.destinations}, routes.size());
    if (is_new) routes.push_back({at->first});
    Route& route = routes[at->second];
    ++route.buckets;
    route.bytes += bucket.bytes;
  }
  std::ranges::stable_sort(routes, std::greater<>(), &Route::bytes);
  Table table({"route", "bytes", "buckets", "receivers"}, {0, 3});
  const std::size_t shown = all ? routes.size() : std::min(routes.size(), kMostRows);
  for (const Route& route : std::span(routes).first(shown)) {
    table.add({fmt::format("{} →", route.ends.first), format_bytes(route.bytes),
               std::to_string(route.buckets), receivers_text(plan.destination_ranks(route.ends.second))});
  }
  return table.text() + more_text(shown, routes.size(), "route");
}

}  // namespace

double least_seconds(const Plan& plan, double link_gbps) {
  std::int64_t most = 0;
  for (const Traffic& rank : plan.traffic()) most = std::max({most, rank.sent, rank.received});
  constexpr double kBitsOfAByte = 8;
  return kBitsOfAByte * static_cast<double>(most) / (link_gbps * 1e9);
}

std::string plan_summary(const Plan& plan, std::optional<double> link_gbps) {
  const std::vector<Traffic> traffic = plan.traffic();
  const Role trainers = trainers_of(plan);
  const Role inference = inference_of(plan);
  const std::int64_t sent = sum(traffic, &Traffic::sent);
  const std::string together = plan.topology.colocate ? ", the same ranks" : "";
  if (sent == 0) {
    return wrapped(fmt::format("# {} and {}{}: nothing travels, each has what it needs\n", trainers.name,
                               inference.name, together),
                   kLineWidth, kContinued);
  }
  const std::size_t sender = busiest(trainers, traffic, &Traffic::sent).front();
  const std::size_t receiver = busiest(inference, traffic, &Traffic::received).front();
  const double mean = static_cast<double>(sent) / static_cast<double>(plan.topology.trainers);
  const auto buckets =
      std::ranges::count_if(plan.buckets, [&](const Bucket& bucket) { return plan.travels(bucket); });
  std::string text = fmt::format(
      "# {} {} {} in {}; {}{} {} {}\n", trainers.name, trainers.ranks.size() == 1 ? "sends" : "send",
      format_bytes(sent), counted(buckets, "bucket"), inference.name, together,
      inference.ranks.size() == 1 ? "gets" : "get", format_bytes(sum(traffic, &Traffic::received)));
  text += fmt::format("# busiest sender: rank {} with {}, {:.2f} × the mean of the trainers\n", sender,
                      format_bytes(traffic[sender].sent), static_cast<double>(traffic[sender].sent) / mean);
  text += fmt::format("# busiest receiver: rank {} with {}\n", receiver,
                      format_bytes(traffic[receiver].received));
  text += steps_line(plan) + "\n" + bound_line(plan, link_gbps) + "\n";
  return wrapped(text, kLineWidth, kContinued);
}

std::string plan_tables(const Plan& plan, bool all) {
  const std::vector<Traffic> traffic = plan.traffic();
  std::string text = spread_text(plan, traffic);
  text += '\n';
  text += ranks_text(plan, traffic, trainers_of(plan), &Traffic::sent, "sends", all);
  text += '\n';
  text += ranks_text(plan, traffic, inference_of(plan), &Traffic::received, "receives", all);
  text += '\n';
  text += routes_text(plan, all);
  return text;
}

std::string rank_plan_text(const Plan& plan, const RankPlan& rank_plan, std::int64_t rank) {
  const Traffic traffic = plan.traffic().at(static_cast<std::size_t>(rank));
  Table table({"rank " + std::to_string(rank), role_of(plan.topology, rank)}, {0, 1});
  table.add({"parameters",
             fmt::format("{} in {}", format_bytes(rank_plan.parameter_bytes), rank_plan.parameters.size())});
  table.add({"sent", format_bytes(traffic.sent)});
  table.add({"received", format_bytes(traffic.received)});
  table.add({"buckets", std::to_string(traffic.buckets)});
  table.add({"moves", std::to_string(rank_plan.moves.size())});
  table.add({"staging", format_bytes(plan.staging_bytes_per_rank())});
  return table.text();
}

}  // namespace weightcast
