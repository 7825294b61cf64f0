#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast {

/// The hidden files that broken runs have left beside files. Only who holds the lock of those files may touch
/// them: else they may be another job's, which is at work. What cannot be removed does no harm and stays.
class LeftOvers {
 public:
  /// In a folder, of the files whose names `mine` says.
  LeftOvers(std::string directory, std::function<bool(std::string_view)> mine);

  /// Of one file.
  explicit LeftOvers(const std::string& path);

  /// The ids of the replacements of which an unfinished file is left.
  std::set<std::string> unfinished() const;

  /// Before anything is written: undoes each replacement of which an unfinished file is left here or, as
  /// `elsewhere` says, on another node, that is, gives its old files their names back and removes what is
  /// unfinished. An old file whose final name is gone gets it back, too. Other old files stay, because they
  /// may be what is missing of the last whole version.
  void clear_unfinished(const std::set<std::string>& elsewhere = {}) const;

  /// Once new files have all final names: removes the old ones, too.
  void clear_old() const;

 private:
  struct Found;
  /// The newest first.
  std::vector<Found> find(std::string_view kind) const;

  std::string directory_;
  std::function<bool(std::string_view)> mine_;
  std::string only_;  ///< the one file's path, if it is of one
};

}  // namespace weightcast
