#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "launch/options.hpp"
#include "launch/tensor_choice.hpp"
#include "model/family.hpp"
#include "model/landing/landing_map.hpp"
#include "plan/topology.hpp"
#include "source/binding.hpp"
#include "source/copies.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

class LiveEnds;

/// A source as its headers describe it, and what it has of the model. A source is a whole checkpoint or the
/// trainers' shards; in a job, of these this rank's own alone.
struct BoundCheckpoint {
  Checkpoint checkpoint;
  Binding binding;
};

/// A model and the sources of its weights that a command works on.
struct Model {
  std::unique_ptr<ModelConfig> config;  ///< null where a landing map alone says what the model is
  std::string title;                    ///< for people: what it is called, and what says so
  std::unique_ptr<Family> family;
  TensorPatterns patterns;  ///< which have chosen what the family has
  std::vector<BoundCheckpoint> sources;
};

/// Reads config and headers and binds every source to the model; `trainers` learns how the shards pad the
/// vocabulary. With a landing map the model is what that says; a config of a family that is known must say
/// the same then. Throws UsageError for shards without a layout, and for a pattern that fits nothing; where
/// no source is named it is the caller's to ask what a pattern fits beside the model
/// (TensorPatterns::unmatched()). InputError for a map that says otherwise.
Model load_model(const Options& options, const std::shared_ptr<const LandingMap>& landing,
                 std::optional<TrainerLayout>& trainers);

/// The same for a job, as load_source(); of running trainers, where `live` is given and has any, what they
/// have published. Collective.
Model load_model(Control& control, const Options& options, const std::shared_ptr<const LandingMap>& landing,
                 Topology& topology, LiveEnds* live);

/// One source of a job alone: rank 0 reads a whole checkpoint's headers and broadcasts, every trainer reads
/// those of its own shard. Collective.
BoundCheckpoint load_source(Control& control, const Options& options, const std::string& source,
                            const Model& model, Topology& topology);

/// Reads the headers of a checkpoint as the options allow.
Checkpoint read_source(const Options& options, const std::string& path);

/// Whether a head that the model ties to the embedding must equal it (`--tied-head refuse`).
bool compares_tied_head(const Options& options);

/// Compares what a source keeps beside the model's tensors and must equal them (source/copies.hpp), unless
/// `--tied-head` says otherwise.
void require_equal_copies(const Options& options, const Family& family, const BoundCheckpoint& source,
                          ThreadPool& readers, const WorkShare& share, const std::function<void()>& poll);

}  // namespace weightcast
