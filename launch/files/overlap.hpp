#pragma once

#include <sys/types.h>

#include <map>
#include <set>
#include <string>
#include <utility>

#include "sink/shard_sink.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// Throws UsageError when writing to `output`, a file or a folder, would replace or remove a file that is
/// being read: a folder is cleared of what is not of the new checkpoint. Also for an HDF5 file beside the
/// files of a folder that is the source. `option` names the output in the line.
void require_other_place(const std::string& option, const std::string& output, const Checkpoint& checkpoint);

/// The same for `--model`, a folder or a file: what is written has a description of the model of its own.
void require_other_place_than_model(const std::string& option, const std::string& output,
                                    const std::string& model);

/// The folders that are given inference ranks' shards, of which these names alone are replaced or removed.
class SinkFolders {
 public:
  /// Throws UsageError for a folder with a model's safetensors, which would hold two savings.
  SinkFolders(ShardPlace place, const std::set<std::string>& folders);

  /// Throws UsageError when a source has a file of such a name in one of them, or is one of them.
  void require_no_shard_of(const Checkpoint& checkpoint) const;

 private:
  /// The folder that a path leads to; empty when it is none of these.
  std::string folder_at(const std::string& path) const;

  ShardPlace place_;
  std::map<std::pair<dev_t, ino_t>, std::string> folders_;  ///< those that are there, by device and inode
};

}  // namespace weightcast
