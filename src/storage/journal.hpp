#pragma once

#include <optional>
#include <string>

#include "storage/input_file.hpp"

namespace weightcast {

/// What the replacement of one file does: whoever finds it broken off knows by that what to undo. Its file is
/// on the disk before the first rename and goes when all is certain.
struct JournalEntry {
  std::optional<FileIdentity> fresh;  ///< the new file; nothing where the old one goes without a successor
  bool had_old = false;               ///< whether the final name was taken before
};

/// Makes the file and puts it on the disk. Throws SystemRefusal; there is no file then.
void write_journal(const std::string& path, const JournalEntry& entry);

/// Of a file that was never wholly written an entry that names no new file: nothing was renamed then. Throws
/// IoError when it cannot be read.
JournalEntry read_journal(const std::string& path);

}  // namespace weightcast
