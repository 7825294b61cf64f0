#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace weightcast::engine {

/// The tensor-parallel ranks of one replica, and what they do together. All ranks call the same methods in
/// the same order with spans of the same length.
class Group {
 public:
  virtual ~Group() = default;
  virtual std::int64_t rank() const = 0;
  virtual std::int64_t size() const = 0;

  /// Replaces each element by its sum over the ranks.
  virtual void sum(std::span<float> values) = 0;

  /// The ranks' values one after the other, in rank order, on every rank.
  virtual std::vector<float> gather(std::span<const float> values) = 0;
};

/// One rank alone.
class SoloGroup : public Group {
 public:
  std::int64_t rank() const override { return 0; }
  std::int64_t size() const override { return 1; }
  void sum(std::span<float> /*values*/) override {}
  std::vector<float> gather(std::span<const float> values) override { return {values.begin(), values.end()}; }
};

}  // namespace weightcast::engine
