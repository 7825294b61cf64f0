#pragma once

#include <functional>
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

  /// Before anything is written: removes unfinished files, and gives an old file whose final name is gone
  /// that name back. Other old files stay, because a run that broke amid its renames may have left in them
  /// what is missing of the last whole version.
  void clear_unfinished() const;

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
