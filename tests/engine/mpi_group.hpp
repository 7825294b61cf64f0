#pragma once

#include "engine/group.hpp"
#include "sys/mpi.hpp"

namespace weightcast::engine {

/// The ranks of a communicator.
class MpiGroup : public Group {
 public:
  explicit MpiGroup(Communicator communicator) : communicator_(std::move(communicator)) {}

  std::int64_t rank() const override { return communicator_.rank(); }
  std::int64_t size() const override { return communicator_.size(); }
  void sum(std::span<float> values) override;
  std::vector<float> gather(std::span<const float> values) override;

  /// Whether all ranks pass the same value.
  bool same_everywhere(std::int64_t value) const;

 private:
  Communicator communicator_;
};

}  // namespace weightcast::engine
