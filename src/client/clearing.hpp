#pragma once

namespace weightcast::client {

/// Held from the look whether an exporter is dead until what it has left is gone: of two who find the same
/// remains, the second would otherwise take away what the first has put in their place. Used on both sides,
/// as block.hpp. It is a lock on /dev/shm, which all have in common who can see whether such an exporter
/// lives.
class Clearing {
 public:
  Clearing();
  ~Clearing();
  Clearing(const Clearing&) = delete;
  Clearing& operator=(const Clearing&) = delete;

  /// False where the lock did not come: errno says why.
  bool may() const { return held_; }

 private:
  int file_;
  bool held_ = false;
};

}  // namespace weightcast::client
