#include "control/farewell.hpp"

#include <unistd.h>

#include <exception>
#include <future>
#include <thread>
#include <utility>

#include "storage/unfinished.hpp"

namespace weightcast {

using namespace std::chrono_literals;

void within(std::chrono::milliseconds grace, const std::function<void()>& action) {
  try {
    std::packaged_task<void()> task(action);
    const std::future<void> done = task.get_future();
    std::thread(std::move(task)).detach();
    done.wait_for(grace);
  } catch (const std::exception&) {
    action();
  }
}

void clean_up() {
  // Long enough for a network file system that is merely busy.
  constexpr auto kGrace = 2s;
  within(kGrace, &undo_unfinished);
}

void leave(ExitCode code) {
  clean_up();
  _exit(static_cast<int>(code));
}

}  // namespace weightcast
