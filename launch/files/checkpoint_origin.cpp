#include "launch/files/checkpoint_origin.hpp"

#include "core/hash.hpp"

namespace weightcast {

std::int64_t version_of(const Options& options, const Checkpoint& checkpoint) {
  return options.has_weight_version ? options.weight_version : checkpoint.weight_version.value_or(0);
}

std::uint64_t origin_of(const Checkpoint& checkpoint) {
  Hasher hasher;
  for (const CheckpointFile& file : checkpoint.files) {
    hasher.add(file.header_hash)
        .add(file.identity.inode)
        .add(file.identity.size)
        .add(file.identity.modified_ns);
  }
  return hasher.digest();
}

}  // namespace weightcast
