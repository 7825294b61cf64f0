#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "control/this_rank.hpp"
#include "sys/shared_words.hpp"

namespace weightcast {

/// The ranks of the job whose processes can be seen from this one: those of the same host, where containers
/// do not hide them. A launcher ends a job by SIGTERM when one of its ranks has died; whoever gets it looks
/// here whether that is so, and which it was. They tell one another, too, that one has said why the job ends,
/// where MPI cannot be asked: in a thread, or when a rank hangs.
class Neighbours {
 public:
  /// Collective.
  explicit Neighbours(const ThisRank& self);

  /// The lowest of them that has died; nothing while all live.
  std::optional<int> dead() const;

  /// How many lower ones live.
  int alive_below() const;

  /// Whether all ranks of the job are among them, and share the word.
  bool are_all() const { return all_; }

  /// True once for all of them together: whoever gets it says the one line with which the job ends. Where
  /// they share no memory it is true for each.
  bool take_the_word() const;
  /// The same as a function for any thread, which may outlive this; none where they share no memory.
  std::function<bool()> word() const;
  /// Whether one of them has taken it.
  bool have_spoken() const;

 private:
  struct Process {
    int rank = 0;
    std::int64_t id = 0;
  };
  std::vector<Process> processes_;  ///< by rank, without this one
  int rank_;
  bool all_;
  std::shared_ptr<const SharedWords>
      spoken_;  ///< one word: whether the line has been said; none where they cannot share memory
};

}  // namespace weightcast
