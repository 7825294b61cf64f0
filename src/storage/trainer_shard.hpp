#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "storage/checkpoint.hpp"
#include "storage/writer.hpp"

namespace weightcast {

/// Numbers of the `trainer-<rank>.safetensors` and `trainer-<rank>.h5` files of a folder: one more than the
/// highest; 0 when there is none or no such folder.
std::int64_t count_trainer_shards(const std::string& directory);

/// Whether a name is one of those.
bool is_trainer_shard(std::string_view name);

/// What the files of one conversion have in common, written into each.
struct TrainerShardLabels {
  std::string layout;  ///< how the weights are divided
  std::int64_t weight_version = 0;
  std::string id;  ///< of this conversion alone
};

/// A trainer's file: its header, the id of the conversion that wrote it, if one did, and whether it says of
/// which trainer of which layout it is.
struct TrainerShard {
  Checkpoint checkpoint;
  std::string id;
  bool labelled = false;
};

/// A file of the folder that belongs to a whole checkpoint, or empty: beside trainers' shards it makes the
/// folder ambiguous.
std::string whole_checkpoint_in(const std::string& directory);

/// Reads the header of trainer `rank`'s file in `directory`. `layout` is a text that says how the weights are
/// divided: a file that says another one, or that it is another rank's, is refused; one that says nothing is
/// taken at its name. Throws IoError when there is no such file or it cannot be read, InputError when it is
/// refused or there is one in each format.
TrainerShard read_trainer_shard(const std::string& directory, std::int64_t rank, const std::string& layout,
                                OtherFiles other_files = OtherFiles::kRefused);

/// Creates such a file, safetensors or HDF5.
std::unique_ptr<TensorFileWriter> create_trainer_shard(const std::string& directory, std::int64_t rank,
                                                       bool hdf5, const TrainerShardLabels& labels,
                                                       const std::vector<DatasetSpec>& datasets);

/// The trainer files of a folder but those of ranks below `ranks` in the format named: what an earlier layout
/// left there would be taken for part of this one.
struct OtherTrainerShards {
  std::vector<std::string> own;      ///< which have to go
  std::vector<std::string> foreign;  ///< which stay, because this program has not written them
};
OtherTrainerShards other_trainer_shards(const std::string& directory, std::int64_t ranks, bool hdf5);

/// Throws IoError when the shards of these ranks or a `config.json` of that text would replace files that
/// this program has not written.
void require_own_trainer_shards(const std::string& directory, std::int64_t ranks, bool hdf5,
                                const std::string& config_text);

}  // namespace weightcast
