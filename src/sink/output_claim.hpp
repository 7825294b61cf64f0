#pragma once

#include <set>
#include <string>

#include "storage/left_overs.hpp"
#include "storage/output_lock.hpp"

namespace weightcast {

/// A place to write to that is this job's alone for as long as the claim lives: locked, so that what broken
/// runs have left there can be cleared. Where there can be no lock, the log says so and nothing is cleared.
class OutputClaim {
 public:
  /// Arguments and errors are those of OutputLock.
  OutputClaim(std::string lock_path, const std::string& option, const std::string& command,
              LeftOvers left_overs);

  bool held() const { return lock_.held(); }
  int made_folders() const { return lock_.made_folders(); }

  /// Throws IoError when the lock is no longer this job's, see OutputLock.
  void require_name() const { lock_.require_name(); }

  /// To be called before anything is written, see LeftOvers; `clear` is all of it, for files that no other
  /// node has a part in.
  std::set<std::string> unfinished() const;
  void put_back(const std::set<std::string>& unfinished) const;
  void remove_unfinished() const;
  void clear() const;

  /// To be called once new files have all final names.
  void replaced() const;

 private:
  OutputLock lock_;
  LeftOvers left_overs_;
};

}  // namespace weightcast
