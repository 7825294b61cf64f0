#include "sys/thread_pool.hpp"

#include <utility>

namespace weightcast {

ThreadPool::Job::Job(ThreadPool& pool, std::size_t count, std::function<void(std::size_t)> task)
    : pool_(pool), task_(std::move(task)), count_(count) {
  if (count == 0) return;
  {
    const std::scoped_lock lock(pool_.mutex_);
    pool_.waiting_.push_back(this);
  }
  pool_.changed_.notify_all();
}

ThreadPool::Job::~Job() {
  std::unique_lock lock(pool_.mutex_);
  leave_out_the_rest();
  pool_.changed_.wait(lock, [&] { return done(); });
}

void ThreadPool::Job::finish() {
  std::unique_lock lock(pool_.mutex_);
  while (!done()) {
    if (pool_.waiting_.empty()) {
      pool_.changed_.wait(lock, [&] { return done() || !pool_.waiting_.empty(); });
    } else {
      pool_.do_one(lock);
    }
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::Job::leave_out_the_rest() {
  if (next_ == count_) return;
  next_ = count_;
  std::erase(pool_.waiting_, this);
}

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) {
    helpers_.emplace_back([this](const std::stop_token& stop) { help(stop); });
  }
}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(std::size_t count, std::function<void(std::size_t)> task) {
  Job(*this, count, std::move(task)).finish();
}

void ThreadPool::help(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [&] { return !waiting_.empty(); })) do_one(lock);
}

void ThreadPool::do_one(std::unique_lock<std::mutex>& lock) {
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
