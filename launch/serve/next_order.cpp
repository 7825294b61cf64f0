#include "launch/serve/next_order.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace weightcast {

namespace {

bool is_served_by_all(std::span<const Sight> sights, std::int64_t version) {
  bool any = false;
  for (const Sight& sight : sights) {
    if (sight.serves == Sight::kNobody) continue;
    if (sight.serves != version) return false;
    any = true;
  }
  return any;
}

}  // namespace

std::optional<std::int64_t> offered_by_all(std::span<const Sight> sights) {
  std::optional<std::int64_t> version;
  for (const Sight& sight : sights) {
    if (sight.offers == Sight::kNobody) continue;
    if (sight.offers == Sight::kNone || (version && *version != sight.offers)) return std::nullopt;
    version = sight.offers;
  }
  return version;
}

UpdateAnswer there_already(std::int64_t version) {
  const std::string note = fmt::format("version {} is there already; nothing is to be done", version);
  return {ExitCode::kDone, "", note, "", version, true};
}

std::optional<UpdateAnswer> answer_at_once(const UpdateRequest& request, std::span<const Sight> sights) {
  const std::optional<std::int64_t> offered = offered_by_all(sights);
  if (!request.version || offered == request.version) return std::nullopt;
  if (is_served_by_all(sights, *request.version)) return there_already(*request.version);
  if (!offered) return std::nullopt;
  return UpdateAnswer{
      ExitCode::kUsage, "", "",
      fmt::format("--weight-version {}: the trainers offer version {}; ask for that one, or for none",
                  *request.version, *offered)};
}

bool has_trainers(std::span<const Sight> sights) {
  return std::any_of(sights.begin(), sights.end(),
                     [](const Sight& sight) { return sight.offers != Sight::kNobody; });
}

std::string offers_text(std::span<const Sight> sights) {
  constexpr int kMostNamed = 4;
  std::string text;
  int named = 0;
  for (std::size_t rank = 0; rank < sights.size() && named < kMostNamed; ++rank) {
    const std::int64_t offers = sights[rank].offers;
    if (offers == Sight::kNobody) continue;
    ++named;
    text += fmt::format("{}the trainer of rank {} offers {}", text.empty() ? "" : ", ", rank,
                        offers == Sight::kNone ? "nothing" : fmt::format("version {}", offers));
  }
  return text;
}

bool NextOrder::may_try(std::int64_t version, Clock::time_point now) const {
  return !not_before_ || version != tried_ || now >= *not_before_;
}

Order NextOrder::next(std::span<const Sight> sights, bool open, const std::optional<UpdateRequest>& request,
                      Clock::time_point now) {
  const auto stops = std::max_element(sights.begin(), sights.end(),
                                      [](const Sight& a, const Sight& b) { return a.signal < b.signal; });
  if (stops->signal != 0) return {Order::kStop, Sight::kNone, 0, stops->signal};
  const auto all = [&](Sight::Exporters exporters) {
    return std::all_of(sights.begin(), sights.end(),
                       [&](const Sight& sight) { return sight.exporters <= exporters; });
  };
  if (open && !all(Sight::kMapped)) return {Order::kRelease};
  if (request) {
    if (!open) return {Order::kOpen, Sight::kNone, 1};
    const std::int64_t version = request->version.value_or(Sight::kNone);
    // Otherwise trainers are waited for here, where waiting is cheap.
    if (!has_trainers(sights) || offered_by_all(sights)) return {Order::kUpdate, version, 1};
  }
  if (!on_offer_) return {};
  if (!open) {
    if (!all(Sight::kThere) || !may_try(Sight::kNone, now)) return {};
    tried_ = Sight::kNone;
    return {Order::kOpen};
  }
  const std::optional<std::int64_t> version = offered_by_all(sights);
  if (!version || !may_try(*version, now)) return {};
  tried_ = *version;
  return {Order::kUpdate};
}

void NextOrder::succeeded() {
  not_before_.reset();
  pause_ = std::chrono::seconds(1);
}

void NextOrder::failed(Clock::time_point now) {
  constexpr std::chrono::seconds kMostPause{60};
  not_before_ = now + pause_;
  pause_ = std::min(2 * pause_, kMostPause);
}

}  // namespace weightcast
