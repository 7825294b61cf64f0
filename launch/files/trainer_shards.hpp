#pragma once

#include "launch/options.hpp"

namespace weightcast {

/// `convert --to megatron`: the shards that trainers of `--trainer-alloc` would hold of the source, and
/// config.json beside them.
void write_trainer_shards(const Options& options);

}  // namespace weightcast
