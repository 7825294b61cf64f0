#pragma once

#include <memory>
#include <string>
#include <vector>

#include "launch/options.hpp"
#include "model/config.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// What to call a config, its text, what ModelOpt says beside it of a checkpoint that it wrote, and the files
/// that these are.
struct ConfigText {
  std::string origin;
  std::string text;
  std::vector<CheckpointFile> files;
  std::string modelopt_path;
  std::string modelopt;  ///< the text; without a path there is none
};

/// The config in force; beside a landing map there need be none, and its text is empty then.
ConfigText read_config(const Options& options);

/// The config that a text is, with what ModelOpt says and `--layers` applied.
std::unique_ptr<ModelConfig> make_config(const ConfigText& text, const Options& options);

/// The config that `--model` names (a file, or a directory with config.json), else the one beside the first
/// source, with `--layers` applied. `files`, if given, are the files that it was made of.
std::unique_ptr<ModelConfig> load_config(const Options& options,
                                         std::vector<CheckpointFile>* files = nullptr);

/// From now on these files must stay as they were read, as the checkpoint's own must.
void add_texts(Checkpoint& checkpoint, const std::vector<CheckpointFile>& files);

}  // namespace weightcast
