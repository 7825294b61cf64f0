#pragma once

#include "storage/checkpoint.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

/// An open data file as a checkpoint describes it. Throws IoError when somebody is writing to it.
CheckpointFile describe_file(const InputFile& file);

/// Throws IoError when an open file is no longer, or is not, the one that was described.
void require_same_file(const FileIdentity& now, const CheckpointFile& described);

/// The same for one that `described` was made of and that is still open, and when somebody is writing to it:
/// before the first read, and after the last.
void require_still(const InputFile& file, const CheckpointFile& described);

/// Throws IoError when the name of a described file leads to another file by now: what was read is whole, and
/// no longer what the user has named. A name that leads nowhere is no such file.
void require_not_replaced(const CheckpointFile& described);

}  // namespace weightcast
