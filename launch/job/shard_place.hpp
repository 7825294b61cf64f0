#pragma once

#include <optional>
#include <string>

#include "sink/shard_sink.hpp"

namespace weightcast {

/// The place of `--sink hdf5:DIR` or `safetensors:DIR`, nothing for `none` and live memory. Throws UsageError
/// for anything else.
std::optional<ShardPlace> shard_place(const std::string& sink);

}  // namespace weightcast
