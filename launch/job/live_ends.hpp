#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/control.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "live/expert_table.hpp"
#include "live/exporter.hpp"
#include "live/live_update.hpp"
#include "live/manifest.hpp"
#include "model/expert_map.hpp"
#include "model/export_map.hpp"
#include "plan/held_weights.hpp"
#include "plan/plan.hpp"
#include "plan/topology.hpp"
#include "session/parameter_memory.hpp"
#include "session/wire_choice.hpp"
#include "source/source.hpp"

namespace weightcast {

/// The folder of `live:DIR`, or nothing for another source or sink.
std::optional<std::string> live_directory(const std::string& place);

/// How long an exporter's answer may take: so much shorter than a phase, in which there are several, that an
/// update that gets none ends in good order.
std::chrono::seconds patience_of(const Options& options);

/// Throws UsageError for options that a live source or sink does not go with.
void require_live_options(const Options& options);

/// A trainer as it has published itself, and its tensors matched with the model.
struct LiveTrainer {
  Manifest manifest;
  BoundCheckpoint weights;
  std::shared_ptr<const ExportMap> map;  ///< all trainers', null without one
};

/// All trainers of a folder, for a command without ranks; nothing is mapped. `topology` learns how the
/// vocabulary is padded. Throws InputError, IoError.
std::vector<LiveTrainer> load_live_trainers(const Options& options, const std::string& directory,
                                            const Family& family, Topology& topology);

/// Which boxes of the model lie where in a trainer's segments. Throws as held_in_segments().
HeldWeights held_by(const LiveTrainer& trainer, const Catalog& catalog);

/// Throws UsageError for an engine whose tensors come through a window, where only a part of the model is
/// sent.
void require_place_for_part(const Manifest& engine, const Family& family);

/// The manifest of number `rank` of `ranks` exporters. Throws InputError when there are more or fewer,
/// IoError when there is none yet, or the exporter is of another start of this process's Slurm job.
Manifest read_manifest_of(const std::string& directory, Role role, std::int64_t rank, std::int64_t ranks);

/// The running processes at the ends of a job: the trainer that this rank reads, the engine that it writes.
class LiveEnds {
 public:
  /// Reads what they have published. Throws (by agreement) IoError, InputError. Collective.
  LiveEnds(Control& control, const Options& options, const Topology& topology);

  /// The wire that goes with their memory: NCCL where any of it is on a GPU, which becomes the current
  /// device. Throws (by agreement) UsageError, InputError where `--transport` is another, or where weights
  /// would go from a GPU to the host. Collective.
  WireChoice choose_wire();

  /// What this rank's trainer has published, matched with the model; nothing on other ranks. `topology`
  /// learns how the vocabulary is padded, and which boxes of tensors trainers hold. Throws (by agreement)
  /// InputError. Collective.
  BoundCheckpoint load_weights(const Family& family, Topology& topology);

  /// Maps their memory, for updates of `family`'s model. Throws (by agreement) IoError, InputError, and
  /// UsageError for an engine that cannot be given a part of it. Collective.
  void open(const Family& family);

  // When it is open:

  /// The map by which the engines say that their experts sit now, on `ep` ranks; nothing where they do not
  /// say it. Throws (by agreement) InputError where one of them says it and another does not, where the maps
  /// are none, or slots that `ep` does not divide; IoError where they have different ones. Collective.
  std::optional<ExpertMap> published_experts(std::int64_t ep);

  /// From here on an update that finds another map than the last that was read fails; `experts` is where it
  /// is planned to place them. Does not communicate.
  void plan_for(const ExpertPlacement& experts);

  /// Says to this rank's engine, which is being written, that its experts sit by that map now. Throws
  /// IoError. Does not communicate.
  void place_experts(const ExpertMap& map);

  /// Where this rank's parameters are; null where no engine is live. Throws UsageError where the engine has
  /// published another layout, InputError where it has not all parameters. Does not communicate.
  std::shared_ptr<ParameterMemory> parameters(const Family& family, const EngineLayout& layout) const;

  /// The trainer's weights; null on a rank that is no trainer. `from` is what load_weights() gave. Does
  /// not communicate.
  std::unique_ptr<Source> source(const Plan& plan, const Catalog& catalog, const BoundCheckpoint& from) const;

  bool has_trainers() const { return has_trainers_; }
  /// This rank's exporters, null where it has none.
  const Exporter* trainer() const { return trainer_.get(); }
  const Exporter* engine() const { return engine_.get(); }
  LiveUpdate& update() { return *update_; }

 private:
  Control& control_;
  const Options& options_;
  bool has_trainers_ = false;
  std::int64_t trainer_number_ = 0;
  std::optional<Manifest> trainer_manifest_;
  std::optional<Manifest> engine_manifest_;
  std::shared_ptr<const ExportMap> map_;  ///< the trainers', null without one
  std::shared_ptr<Exporter> trainer_;
  std::shared_ptr<Exporter> engine_;
  std::optional<ExpertTable> table_;  ///< the engine's
  bool tables_ = false;               ///< all engines have one
  std::int64_t planned_ = 0;          ///< the key of the map that was read last
  std::optional<LiveUpdate> update_;
};

}  // namespace weightcast
