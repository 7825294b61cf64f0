#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "launch/options.hpp"
#include "model/family.hpp"
#include "plan/topology.hpp"
#include "session/binding.hpp"
#include "session/control.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// A model and the sources of its weights that a command works on. A source is a whole checkpoint or the
/// trainers' shards.
struct Model {
  std::unique_ptr<ModelConfig> config;
  std::unique_ptr<Family> family;
  std::vector<Checkpoint> checkpoints;  ///< by source; in a job, of trainers' shards this rank's own alone
  std::vector<Binding> bindings;
};

/// The config that `--model` names (a file, or a directory with config.json), else the one beside the first
/// source, with `--layers` applied.
std::unique_ptr<ModelConfig> load_config(const Options& options);

/// Reads config and headers and binds every source to the model; `trainers` learns how the shards pad the
/// vocabulary. Throws UsageError for shards without a layout.
Model load_model(const Options& options, std::optional<TrainerLayout>& trainers);

/// The same for a job: rank 0 reads a whole checkpoint's headers and broadcasts, every trainer reads those of
/// its own shards. Collective.
Model load_model(Control& control, const Options& options, Topology& topology);

}  // namespace weightcast
