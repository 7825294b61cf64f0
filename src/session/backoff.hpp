#pragma once

#include <chrono>
#include <thread>

namespace weightcast {

/// How a polling loop waits: it spins a little, then sleeps, because ranks that share cores must not take
/// them from those that copy.
class Backoff {
 public:
  void reset() { idle_ = 0; }

  void pause() {
    using namespace std::chrono_literals;
    constexpr int kSpins = 200;
    if (idle_ < kSpins) {
      ++idle_;
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(50us);
    }
  }

 private:
  int idle_ = 0;
};

}  // namespace weightcast
