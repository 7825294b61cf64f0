#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace weightcast {

/// Threads that work through lists of tasks, one list after the other: one that finds no task left in the
/// oldest list takes tasks of the next, so that no thread waits for the last task of a list while there is
/// other work. They sleep when there is none.
class ThreadPool {
 public:
  /// A list of tasks that the pool works through from now on, oldest list first.
  class Job {
   public:
    /// Hands over `task(i)` for every i below `count`: each is called once, on any of the threads, in about
    /// ascending order. `pool` must outlive the job.
    Job(ThreadPool& pool, std::size_t count, std::function<void(std::size_t)> task);
    /// Leaves out tasks that nobody has begun and waits for those that somebody has.
    ~Job();
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;

    /// Works along, on this and other lists, until all tasks of this one are done. Throws what one of them
    /// threw, after which the others were left out.
    void finish();

   private:
    friend ThreadPool;

    // What follows is guarded by the pool's mutex.
    bool done() const { return next_ == count_ && running_ == 0; }
    void leave_out_the_rest();

    ThreadPool& pool_;
    std::function<void(std::size_t)> task_;
    std::size_t next_ = 0;
    std::size_t count_;
    std::size_t running_ = 0;
    std::exception_ptr failure_;
  };

  /// With the thread that finishes a job that many threads, at least one.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// Threads that work when one finishes a job.
  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  /// A job from its beginning to its end.
  void run(std::size_t count, std::function<void(std::size_t)> task);

 private:
  void help(const std::stop_token& stop);
  /// Takes the next task of the oldest job, of which there must be one, and does it without the lock.
  void do_one(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<Job*> waiting_;  ///< jobs with tasks that nobody has begun, oldest first
  std::vector<std::jthread> helpers_;
};

}  // namespace weightcast
