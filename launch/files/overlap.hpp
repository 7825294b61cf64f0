#pragma once

#include <string>

#include "storage/checkpoint.hpp"

namespace weightcast {

/// Throws UsageError when writing to `output`, a file or a folder, would replace or remove a file that is
/// being read: a folder is cleared of what is not of the new checkpoint. Also for an HDF5 file beside the
/// files of a folder that is the source. `option` names the output in the line.
void require_other_place(const std::string& option, const std::string& output, const Checkpoint& checkpoint);

/// The same for `--model`, a folder or a file: what is written has a description of the model of its own.
void require_other_place_than_model(const std::string& option, const std::string& output,
                                    const std::string& model);

/// The same of a folder that is given inference ranks' shards: of what it holds these names alone are
/// replaced or removed, but a folder that is the source would hold two savings.
void require_no_shard_of_sink(const std::string& folder, const Checkpoint& checkpoint);

}  // namespace weightcast
