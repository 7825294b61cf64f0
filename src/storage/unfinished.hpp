#pragma once

#include <string>
#include <variant>

namespace weightcast {

/// How far the replacement of a file has come.
struct UnfinishedFile {
  std::string final_path;
  std::string partial_path;  ///< the new file, empty once it has the final name
  std::string old_path;      ///< a hidden name of the old file, if it has one
  bool final_is_old = true;  ///< the final name is still the old file's, or nobody's as before
};

/// The file of a lock that this process holds.
struct UnfinishedLock {
  std::string path;
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

/// Makes everything as it was before. False when an old file could not get its name back.
bool undo(const UnfinishedFile& file);
bool undo(const UnfinishedLock& lock);
bool undo(const UnfinishedFolder& folder);

/// Undoes all that this process has begun, for one that ends without destructors.
void undo_unfinished();

}  // namespace weightcast
