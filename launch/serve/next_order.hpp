#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "launch/serve/message.hpp"
#include "launch/serve/sight.hpp"

namespace weightcast {

/// What rank 0 tells all ranks to do next. Travels between ranks as it is.
struct Order {
  enum What : std::int64_t {
    kNothing,
    kOpen,     ///< map the exporters and open the session
    kRelease,  ///< let go of the exporters' memory
    kUpdate,
    kStop,
    kLost,  ///< nobody finds the server any more
    kLate,  ///< who was waited for has not come in time
  };

  std::int64_t what = kNothing;
  std::int64_t version = Sight::kNone;  ///< that the update must be to, if somebody said
  std::int64_t for_request = 0;         ///< 1: the first request that waits has asked for it
  std::int64_t signal = 0;

  friend bool operator==(const Order& a, const Order& b) = default;
};

/// Decides on rank 0, from what all ranks see, what is to be done next.
class NextOrder {
 public:
  using Clock = std::chrono::steady_clock;

  /// With `on_offer` an update needs no request.
  explicit NextOrder(bool on_offer) : on_offer_(on_offer) {}

  /// `open`: whether exporters are mapped; `request` waits.
  Order next(std::span<const Sight> sights, bool open, const std::optional<UpdateRequest>& request,
             Clock::time_point now);

  /// How what was ordered without a request has ended. What has failed is tried again when trainers offer
  /// something else, and now and then: a second later, then after twice as long each time.
  void succeeded();
  void failed(Clock::time_point now);

 private:
  bool may_try(std::int64_t version, Clock::time_point now) const;

  bool on_offer_;
  std::int64_t tried_ = Sight::kNone;
  std::optional<Clock::time_point> not_before_;
  std::chrono::seconds pause_{1};
};

/// The version that all live trainers offer; none when they do not offer one.
std::optional<std::int64_t> offered_by_all(std::span<const Sight> sights);

/// That a version is there already, and nothing is to be done.
UpdateAnswer there_already(std::int64_t version);

/// What a request is told at once: that all engines have what it asks for, and no trainers wait for that to
/// be read, or that it cannot be met with what trainers offer.
std::optional<UpdateAnswer> answer_at_once(const UpdateRequest& request, std::span<const Sight> sights);

/// Whether a trainer is live.
bool has_trainers(std::span<const Sight> sights);

/// `the trainer of rank 0 offers version 3, the trainer of rank 1 offers nothing`
std::string offers_text(std::span<const Sight> sights);

}  // namespace weightcast
