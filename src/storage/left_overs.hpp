#pragma once

#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "storage/journal.hpp"

namespace weightcast {

/// The hidden files that broken runs have left beside files. Only who holds the lock of those files may touch
/// them: else they may be another job's, which is at work. Names alone prove nothing: a journal says itself
/// what it is, new files are those of which a journal tells, old ones are the files that it names or are
/// known as own. What cannot be removed does no harm and stays.
class LeftOvers {
 public:
  /// Whether a file is one that the job's program has written: an old one of which no journal tells is
  /// touched only if it is. May throw IoError when that cannot be found out.
  using IsOwn = std::function<bool(const std::filesystem::path&)>;

  /// In a folder, of the files whose names `mine` says.
  LeftOvers(std::string directory, std::function<bool(std::string_view)> mine, IsOwn is_own);

  /// Of one file.
  LeftOvers(const std::string& path, IsOwn is_own);

  /// The ids of the replacements that broke off here: of each some file has not taken its name, or has given
  /// it back. Throws IoError when the folder cannot be listed.
  std::set<std::string> unfinished() const;

  /// Before anything is written: undoes what is here of those replacements, which are all that broke off on
  /// any node, as far as files are still what they have put there. One that has placed all its files is
  /// brought to its end: only its old files go. Throws IoError when something cannot be put back.
  void put_back(const std::set<std::string>& unfinished) const;

  /// Once all of them are put back, everywhere: removes what is left of them. Other old files stay, because
  /// they may be what is missing of the last whole version.
  void remove_unfinished() const;

  /// Once new files have all final names: removes the old ones, too.
  void clear_old() const;

  /// Which files have such names and stay, because nothing says that this program wrote them, as a sentence
  /// for the log; empty when there is none.
  std::string strangers() const;

 private:
  struct Found;
  bool is_known_as_own(const std::filesystem::path& path) const;
  void finish(const Found& found, const Journal& journal, bool broken_off) const;
  /// The newest first. Throws IoError.
  std::vector<Found> find(std::string_view kind) const;
  /// Of those the ones that this program wrote: new files of which a journal tells, and journals.
  std::vector<Found> find_proven(std::string_view kind) const;

  std::string directory_;
  std::function<bool(std::string_view)> mine_;
  IsOwn is_own_;
  std::string only_;  ///< the one file's path, if it is of one
};

}  // namespace weightcast
