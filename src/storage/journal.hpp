#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "storage/input_file.hpp"

namespace weightcast {

/// What the replacement of one file does: whoever finds it broken off knows by that what to undo.
struct JournalEntry {
  std::optional<FileIdentity> fresh;  ///< the new file; nothing where the old one goes without a successor
  std::optional<FileIdentity> old;    ///< the file that had the final name before, if there was one
};

/// What a journal says. It begins with the new file and proves from then on that the hidden file is this
/// program's; what is about to be replaced is on the disk before the first rename. It goes when all is
/// certain.
struct Journal {
  std::uint64_t partial_inode = 0;  ///< of the hidden file that was made for the replacement
  JournalEntry entry;               ///< empty until it was promised: nothing was renamed then
};

/// Makes the file and puts it on the disk. Throws SystemRefusal; there is no file then.
void begin_journal(const std::string& path, std::uint64_t partial_inode);

/// Adds what is about to be replaced, and puts that on the disk. Throws SystemRefusal, and IoError when
/// another file lies there by now.
void promise_in_journal(const std::string& path, const JournalEntry& entry);

/// Nothing where the file is missing, or is none that this program wrote for the replacement that its own
/// name tells of. Throws IoError when it cannot be read.
std::optional<Journal> read_journal(const std::string& path);

}  // namespace weightcast
