#pragma once

#include <sys/stat.h>

#include <string>
#include <variant>

#include "storage/journal.hpp"

namespace weightcast {

/// The replacement of a file, before it has ended.
struct UnfinishedFile {
  std::string final_path;
  std::string partial_path;  ///< the new file; there for as long as it has not taken the final name
  std::string old_path;      ///< a hidden name of the old file, once it has one
  std::string journal_path;
  JournalEntry entry;     ///< what the journal says
  bool promised = false;  ///< the journal says it, and files that belong to this one may have their names
  int descriptor = -1;    ///< of the new file until it is promised: finds it where its folder was moved
};

/// The file of a lock that this process holds.
struct UnfinishedLock {
  std::string path;
  struct stat file {};
  int descriptor = -1;  ///< of it
};

/// A folder that was made for files to come.
struct UnfinishedFolder {
  std::string path;
  int levels = 0;  ///< how many folders were made: this one and those above it
};

/// What has to go when the process ends amid it, in this order: whoever waits for a lock finds the files as
/// they were, and a folder goes last, if nothing is left in it.
using Unfinished = std::variant<UnfinishedFile, UnfinishedLock, UnfinishedFolder>;

/// Notes the state under a key that lives as long as what is unfinished; `forget_unfinished` when it has
/// ended.
void note_unfinished(const void* key, Unfinished state);
void forget_unfinished(const void* key);

enum class PutBack {
  kDone,
  kRefused,   ///< the system did not let it be done, for errno's reason
  kStranger,  ///< somebody else has put a file there since, which stays
};

/// Gives the final name back to what had it before, as far as it is this replacement's: what has come there
/// since, or was written into the file, stays. An old file that has both names keeps them: a rename that
/// hangs may still come to its end.
PutBack put_back(const UnfinishedFile& file);

/// Sees to it that the hidden name is taken, by an empty file if need be: as long as it is, what others have
/// renamed together with this one counts as broken off. False when another job has done away with all that.
bool mark_broken_off(const UnfinishedFile& file);

/// Removes the hidden names of a replacement that nobody places, also in a folder that was moved meanwhile.
void remove_hidden(const UnfinishedFile& file);

/// Makes everything as it was before, also in a folder that was moved meanwhile. Of a file that was promised
/// the journal and the hidden name stay: others may not have been able to undo theirs, and the next job has
/// to.
void undo(const UnfinishedFile& file);
void undo(const UnfinishedLock& lock);
void undo(const UnfinishedFolder& folder);

/// Undoes all that this process has begun, for one that ends without destructors.
void undo_unfinished();

}  // namespace weightcast
