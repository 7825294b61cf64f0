#pragma once

#include "storage/checkpoint.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

/// An open data file as a checkpoint describes it.
CheckpointFile describe_file(const InputFile& file);

/// Throws IoError when an open file is no longer, or is not, the one that was described.
void require_same_file(const FileIdentity& now, const CheckpointFile& described);

}  // namespace weightcast
