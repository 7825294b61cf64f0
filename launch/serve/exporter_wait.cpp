#include "launch/serve/exporter_wait.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/job/live_ends.hpp"
#include "live/manifest.hpp"
#include "report/activity.hpp"

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kPhase = "waiting for trainers and engines to publish";

/// `run/weights/trainer-1.json (its process is dead), run/weights/engine-0.json`, and how many more there are
/// behind four; empty when nobody is missing.
std::string missing(const Options& options, const Topology& topology, std::span<const Sight> sights) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& place, Role role, std::optional<std::int64_t> number,
                       std::int64_t publication) {
    const auto directory = live_directory(place);
    if (!directory || !number || publication == Sight::kPublished) return;
    names.push_back(manifest_path(*directory, role, *number) +
                    (publication == Sight::kDead ? " (its process is dead)" : ""));
  };
  for (std::size_t rank = 0; rank < sights.size(); ++rank) {
    const auto of = static_cast<std::int64_t>(rank);
    add(options.sources.front(), Role::kTrainer, topology.trainer(of), sights[rank].trainer);
    add(options.sink, Role::kEngine, topology.inference_rank(of), sights[rank].engine);
  }
  constexpr std::size_t kMostNamed = 4;
  const std::size_t named = std::min(names.size(), kMostNamed);
  std::string text = fmt::format("{}", fmt::join(std::span(names).first(named), ", "));
  if (names.size() > named) text += fmt::format(" and {} more", names.size() - named);
  return text;
}

}  // namespace

void wait_for_exporters(Control& control, const Options& options, const Topology& topology, Idle& idle,
                        ExporterWatch& watch) {
  const auto give_up = Clock::now() + std::chrono::seconds(options.wait);
  Activity activity(options.progress, control.rank() == 0);
  const Activity::Scope scope(activity);
  std::string absent;  // on rank 0
  const auto decide = [&](std::span<const Sight> sights) -> Order {
    const auto stopped = std::ranges::find_if(sights, [](const Sight& sight) { return sight.signal != 0; });
    if (stopped != sights.end()) return {.what = Order::kStop, .signal = stopped->signal};
    const std::string now = missing(options, topology, sights);
    if (now != absent) activity.begin("waiting for " + now);
    absent = now;
    if (absent.empty()) return {.what = Order::kOpen};
    if (Clock::now() >= give_up) return {.what = Order::kLate};
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return {};
  };
  // A rank that gets one says so as part of what it sees, so that all end in good order.
  const Deadline::DeferSignals defer(control.deadline);
  const Order order = idle.wait(
      kPhase, [&] { return watch.look_for_publications(); }, decide);
  control.deadline.begin_phase("start");
  control.agreement.together([&] {
    if (order.what == Order::kStop) {
      throw StoppedError(
          fmt::format("stopped by {} while {}", signal_name(static_cast<int>(order.signal)), kPhase));
    }
    if (order.what != Order::kLate || control.rank() != 0) return;
    throw TimeoutError(fmt::format("--wait {}: not there yet: {}; start who publishes them, or wait longer",
                                   options.wait, absent));
  });
}

}  // namespace weightcast
