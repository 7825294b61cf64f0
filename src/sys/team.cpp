#include "sys/team.hpp"

#include <utility>

namespace weightcast {

Team::Job::Job(Team& team, std::size_t count, std::function<void(std::size_t)> task)
    : team_(team), task_(std::move(task)), count_(count) {
  if (count == 0) return;
  {
    const std::scoped_lock lock(team_.mutex_);
    team_.waiting_.push_back(this);
  }
  team_.changed_.notify_all();
}

Team::Job::~Job() {
  std::unique_lock lock(team_.mutex_);
  leave_out_the_rest();
  team_.changed_.wait(lock, [&] { return done(); });
}

void Team::Job::finish() {
  std::unique_lock lock(team_.mutex_);
  while (!done()) {
    if (team_.waiting_.empty()) {
      team_.changed_.wait(lock, [&] { return done() || !team_.waiting_.empty(); });
    } else {
      team_.do_one(lock);
    }
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Team::Job::leave_out_the_rest() {
  if (next_ == count_) return;
  next_ = count_;
  std::erase(team_.waiting_, this);
}

Team::Team(int threads) {
  for (int i = 1; i < threads; ++i) {
    helpers_.emplace_back([this](const std::stop_token& stop) { help(stop); });
  }
}

Team::~Team() = default;

void Team::run(std::size_t count, std::function<void(std::size_t)> task) {
  Job(*this, count, std::move(task)).finish();
}

void Team::help(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [&] { return !waiting_.empty(); })) do_one(lock);
}

void Team::do_one(std::unique_lock<std::mutex>& lock) {
  Job& job = *waiting_.front();
  const std::size_t mine = job.next_++;
  ++job.running_;
  if (job.next_ == job.count_) waiting_.erase(waiting_.begin());
  lock.unlock();
  std::exception_ptr failure;
  try {
    job.task_(mine);
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  --job.running_;
  if (failure) {
    job.leave_out_the_rest();
    if (!job.failure_) job.failure_ = std::move(failure);
  }
  if (job.done()) changed_.notify_all();
}

}  // namespace weightcast
