#pragma once

#include <chrono>
#include <thread>

namespace weightcast {

/// How a polling loop waits: it offers its core to others for a while, then sleeps, because ranks that share
/// cores must not take them from those that copy.
class Backoff {
 public:
  void reset() { waiting_ = false; }

  void pause() {
    using namespace std::chrono_literals;
    // As long as agreements between ranks that are all there take.
    constexpr auto kAwake = 1ms;
    const auto now = std::chrono::steady_clock::now();
    if (!waiting_) since_ = now;
    waiting_ = true;
    if (now - since_ < kAwake) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(50us);
    }
  }

 private:
  bool waiting_ = false;
  std::chrono::steady_clock::time_point since_;
};

}  // namespace weightcast
