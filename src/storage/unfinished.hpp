#pragma once

#include <string>

namespace weightcast {

/// How far the replacement of a file has come: what has to be done when the process ends amid it.
struct Unfinished {
  std::string final_path;    ///< empty for a lock, which only goes
  std::string partial_path;  ///< the new file, empty once it has the final name
  std::string old_path;      ///< a hidden name of the old file, if it has one
  bool final_is_old = true;  ///< the final name is still the old file's, or nobody's as before
};

/// Notes the state under a key that lives as long as the replacement; `forget_unfinished` when it has ended.
void note_unfinished(const void* key, Unfinished state);
void forget_unfinished(const void* key);

/// Makes everything as it was before, for a replacement that did not come to its end. False when the old file
/// could not get its name back.
bool undo(const Unfinished& state);

}  // namespace weightcast
