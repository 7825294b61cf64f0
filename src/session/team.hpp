#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace weightcast {

/// Threads that share out one list of tasks at a time. They sleep in between.
class Team {
 public:
  /// With the caller of `run` that many threads, at least one.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  /// Calls `task(i)` for every i below `count`, on any of the threads, in about ascending order. Returns when
  /// all are done; throws what one of them threw, after which the others are left out. For one caller at a
  /// time.
  void run(std::size_t count, const std::function<void(std::size_t)>& task);

 private:
  void help(const std::stop_token& stop);
  void work();

  std::mutex mutex_;
  std::condition_variable_any changed_;
  const std::function<void(std::size_t)>* task_ = nullptr;
  std::size_t next_ = 0;
  std::size_t count_ = 0;
  std::uint64_t runs_ = 0;   ///< lists so far
  std::size_t helping_ = 0;  ///< helpers that are not through with the current list
  std::exception_ptr failure_;
  std::vector<std::jthread> helpers_;
};

}  // namespace weightcast
