#pragma once

#include <cstdint>

#include "launch/options.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// The weight version of what is made from a checkpoint: `--weight-version`, else the checkpoint's own, else
/// 0.
std::int64_t version_of(const Options& options, const Checkpoint& checkpoint);

/// A hash of the files of a checkpoint as they are.
std::uint64_t origin_of(const Checkpoint& checkpoint);

}  // namespace weightcast
