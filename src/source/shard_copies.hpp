#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "plan/held_weights.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

// Trainers' shards that do not say whose they are may be a file under two names. That shows where both hold
// the same values although the two trainers hold different parts of the model.

/// A positive number made of some values of every tensor of a shard; 0 where these are hardly more than one
/// value, which tells nothing.
std::int64_t sample_of(const Checkpoint& shard);

/// A positive number made of the boxes that a trainer holds.
std::int64_t boxes_of(const HeldWeights& held);

/// Throws InputError when two trainers, by rank, hold different boxes but have the same values. A sample of 0
/// says nothing.
void require_distinct_shards(const std::string& source, std::span<const std::int64_t> samples,
                             std::span<const std::int64_t> boxes);

}  // namespace weightcast
