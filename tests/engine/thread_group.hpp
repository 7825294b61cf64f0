#pragma once

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "engine/cut.hpp"
#include "engine/engine.hpp"
#include "engine/group.hpp"

namespace weightcast::engine {

/// What the threads of one group share.
struct ThreadMeeting {
  explicit ThreadMeeting(std::int64_t ranks)
      : all(static_cast<std::ptrdiff_t>(ranks)), values(static_cast<std::size_t>(ranks)) {}

  std::barrier<> all;
  std::vector<std::span<const float>> values;
};

/// A rank that is a thread, so that a test of tensor parallelism needs no launcher.
class ThreadGroup : public Group {
 public:
  ThreadGroup(std::int64_t rank, ThreadMeeting& meeting) : rank_(rank), meeting_(&meeting) {}

  std::int64_t rank() const override { return rank_; }
  std::int64_t size() const override { return static_cast<std::int64_t>(meeting_->values.size()); }

  void sum(std::span<float> values) override {
    const std::vector<float> all = gather(values);
    std::ranges::fill(values, 0.0F);
    for (std::size_t i = 0; i < all.size(); ++i) values[i % values.size()] += all[i];
  }

  std::vector<float> gather(std::span<const float> values) override {
    meeting_->values[static_cast<std::size_t>(rank_)] = values;
    meeting_->all.arrive_and_wait();
    std::vector<float> result;
    for (const auto& part : meeting_->values) result.insert(result.end(), part.begin(), part.end());
    meeting_->all.arrive_and_wait();  // nobody changes its values before everybody has read them
    return result;
  }

 private:
  std::int64_t rank_;
  ThreadMeeting* meeting_;
};

/// One replica, a thread a rank.
class ThreadedReplica {
 public:
  /// Builds every rank from what `parameters_of` returns for its layout.
  ThreadedReplica(const ModelConfig& config, std::int64_t tp, std::int64_t ep, bool up_first,
                  const std::function<MemorySource(const RankLayout&)>& parameters_of)
      : meeting_(std::make_unique<ThreadMeeting>(tp)) {
    for (std::int64_t rank = 0; rank < tp; ++rank) {
      const RankLayout layout{rank, tp, rank / (tp / ep), ep, up_first};
      groups_.push_back(std::make_unique<ThreadGroup>(rank, *meeting_));
      models_.emplace_back(config, layout, parameters_of(layout), *groups_.back());
    }
  }

  /// Runs `work` on every rank at once and returns rank 0's result. `work` must not throw.
  template <typename Work>
  auto run(const Work& work) const {
    std::vector<decltype(work(models_.front()))> results(models_.size());
    {
      std::vector<std::jthread> threads;
      for (std::size_t rank = 0; rank < models_.size(); ++rank) {
        threads.emplace_back([&, rank] { results[rank] = work(models_[rank]); });
      }
    }
    return std::move(results.front());
  }

 private:
  std::unique_ptr<ThreadMeeting> meeting_;
  std::vector<std::unique_ptr<ThreadGroup>> groups_;
  std::vector<Model> models_;
};

}  // namespace weightcast::engine
