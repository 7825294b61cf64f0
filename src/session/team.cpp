#include "session/team.hpp"

#include <utility>

namespace weightcast {

Team::Team(int threads) {
  for (int i = 1; i < threads; ++i) {
    helpers_.emplace_back([this](const std::stop_token& stop) { help(stop); });
  }
}

Team::~Team() = default;

void Team::run(std::size_t count, const std::function<void(std::size_t)>& task) {
  {
    const std::scoped_lock lock(mutex_);
    task_ = &task;
    next_ = 0;
    count_ = count;
    helping_ = helpers_.size();
    failure_ = nullptr;
    ++runs_;
  }
  changed_.notify_all();
  work();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return helping_ == 0; });
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Team::help(const std::stop_token& stop) {
  for (std::uint64_t seen = 0;;) {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return runs_ != seen; })) return;
      seen = runs_;
    }
    work();
    {
      const std::scoped_lock lock(mutex_);
      --helping_;
    }
    changed_.notify_all();
  }
}

void Team::work() {
  for (;;) {
    std::size_t mine = 0;
    {
      const std::scoped_lock lock(mutex_);
      if (next_ >= count_) return;
      mine = next_++;
    }
    try {
      (*task_)(mine);
    } catch (...) {
      const std::scoped_lock lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_ = count_;
    }
  }
}

}  // namespace weightcast
