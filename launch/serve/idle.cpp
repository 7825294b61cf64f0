#include "launch/serve/idle.hpp"

#include <algorithm>
#include <chrono>
#include <thread>
#include <type_traits>

namespace weightcast {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSightTag = 5;
constexpr int kOrderTag = 6;

static_assert(std::is_trivially_copyable_v<Sight> && std::is_trivially_copyable_v<Order>);

}  // namespace

Idle::Idle(Control& control)
    : control_(control),
      comm_(Communicator::duplicate(control.comm())),
      sights_(control.rank() == 0 ? static_cast<std::size_t>(control.size()) : 0) {}

Order Idle::wait(const char* phase, const std::function<Sight()>& look,
                 const std::function<Order(std::span<const Sight> sights)>& decide) {
  ++round_;
  phase_ = phase;
  phase_begins_ = {};
  if (control_.rank() != 0) return hear_order(look);
  const Order order = decide_for_all(look, decide);
  // To each straight: in a tree every rank on the way would sleep for a while first.
  std::vector<MPI_Request> requests(static_cast<std::size_t>(control_.size()), MPI_REQUEST_NULL);
  for (int rank = 1; rank < control_.size(); ++rank) {
    WEIGHTCAST_MPI(MPI_Isend(&order, sizeof order, MPI_BYTE, rank, kOrderTag, comm_.get(),
                             &requests[static_cast<std::size_t>(rank)]));
  }
  for (MPI_Request& request : requests) control_.agreement.wait(request);
  return order;
}

Order Idle::decide_for_all(const std::function<Sight()>& look,
                           const std::function<Order(std::span<const Sight> sights)>& decide) {
  for (;;) {
    keep_time();
    hear_sights();
    sights_[0] = look();
    sights_[0].round = round_;
    const bool all = std::all_of(sights_.begin(), sights_.end(),
                                 [&](const Sight& sight) { return sight.round == round_; });
    if (all) {
      const Order order = decide(sights_);
      if (order.what != Order::kNothing) return order;
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

Order Idle::hear_order(const std::function<Sight()>& look) {
  constexpr std::chrono::milliseconds kSleep{1};
  Order order;
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Irecv(&order, sizeof order, MPI_BYTE, 0, kOrderTag, comm_.get(), &request));
  Sight told;
  for (;;) {
    int done = 0;
    WEIGHTCAST_MPI(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
    if (done != 0) return order;
    keep_time();
    Sight sight = look();
    sight.round = round_;
    if (!(sight == told)) tell(sight);
    told = sight;
    std::this_thread::sleep_for(kSleep);
  }
}

void Idle::hear_sights() {
  for (;;) {
    int there = 0;
    MPI_Status status;
    WEIGHTCAST_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kSightTag, comm_.get(), &there, &status));
    if (there == 0) return;
    Sight& sight = sights_.at(static_cast<std::size_t>(status.MPI_SOURCE));
    WEIGHTCAST_MPI(MPI_Recv(&sight, sizeof sight, MPI_BYTE, status.MPI_SOURCE, kSightTag, comm_.get(),
                            MPI_STATUS_IGNORE));
  }
}

void Idle::tell(const Sight& sight) {
  MPI_Request request = MPI_REQUEST_NULL;
  WEIGHTCAST_MPI(MPI_Isend(&sight, sizeof sight, MPI_BYTE, 0, kSightTag, comm_.get(), &request));
  control_.agreement.wait(request);
}

void Idle::keep_time() {
  constexpr std::chrono::milliseconds kPeriod{200};
  if (const auto now = Clock::now(); now >= phase_begins_) {
    control_.deadline.begin_phase(phase_);
    phase_begins_ = now + kPeriod;
  }
  control_.deadline.poll();
}

}  // namespace weightcast
