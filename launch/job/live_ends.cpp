#include "launch/job/live_ends.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <span>
#include <string_view>

#include "core/error.hpp"
#include "live/gpu_live.hpp"
#include "live/live_weights.hpp"
#include "live/manifest.hpp"
#include "source/trainer_binding.hpp"

namespace weightcast {

namespace {

/// The manifest of number `rank` of `ranks` exporters. Throws InputError when there are more or fewer.
Manifest manifest_of(const std::string& directory, Role role, std::int64_t rank, std::int64_t ranks) {
  Manifest manifest = read_manifest(manifest_path(directory, role, rank));
  if (manifest.role != role || manifest.rank != rank) {
    throw InputError(fmt::format("{}: is of {} {}; let all publish again", manifest.path,
                                 role_name(manifest.role), manifest.rank));
  }
  if (manifest.ranks != ranks) {
    throw InputError(fmt::format(
        "{}: is one of {} {}s, but the job's layout has {}; let --trainers, --inference or --alloc "
        "say what runs",
        manifest.path, manifest.ranks, role_name(role), ranks));
  }
  return manifest;
}

/// How long an answer may take: so much shorter than a phase, in which there are several, that an update that
/// gets none ends in good order.
std::chrono::seconds patience_of(const Options& options) {
  constexpr std::int64_t kAnswersOfAPhase = 4;
  return std::chrono::seconds(std::max<std::int64_t>(1, options.timeout / kAnswersOfAPhase));
}

}  // namespace

std::optional<std::string> live_directory(const std::string& place) {
  constexpr std::string_view kLive = "live:";
  if (!place.starts_with(kLive)) return std::nullopt;
  if (place.size() == kLive.size()) throw UsageError(place + ": name the folder behind it");
  return place.substr(kLive.size());
}

void require_live_options(const Options& options) {
  const bool sink = live_directory(options.sink).has_value();
  const bool source = std::any_of(options.sources.begin(), options.sources.end(),
                                  [](const std::string& path) { return live_directory(path).has_value(); });
  if (source && options.sources.size() > 1) {
    throw UsageError("--source live:DIR: is the one source of a job; start another for the next version");
  }
  if (source && options.model.empty()) {
    throw UsageError("--source live:DIR: needs --model CONFIG_JSON, which says what the model is");
  }
  if (source && options.has_weight_version) {
    throw UsageError("--weight-version: a live source has the version that the trainers offer");
  }
  if (sink && options.no_verify) {
    throw UsageError("--no-verify: an engine is given nothing that was not verified; leave it out");
  }
}

BoundCheckpoint load_live_source(Control& control, const std::string& directory, const Family& family,
                                 Topology& topology) {
  const auto trainer = topology.trainer(control.rank());
  BoundCheckpoint loaded;
  std::array<std::int64_t, 1> padded{0};
  control.agreement.together([&] {
    if (!trainer) return;
    loaded.checkpoint = checkpoint_of(manifest_of(directory, Role::kTrainer, *trainer, topology.trainers));
    if (topology.trainer_layout)
      padded[0] = padded_vocabulary_of(*topology.trainer_layout, loaded.checkpoint);
  });
  control.agreement.maximum(std::span<std::int64_t>(padded));
  if (topology.trainer_layout) topology.trainer_layout->padded_vocabulary = padded[0];
  control.agreement.together([&] {
    if (!trainer) return;
    loaded.binding = topology.trainer_layout
                         ? bind_trainer(family, *topology.trainer_layout, *trainer, loaded.checkpoint)
                         : bind(family, loaded.checkpoint);
  });
  return loaded;
}

LiveEnds::LiveEnds(Control& control, const Options& options, const Topology& topology)
    : control_(control), options_(options) {
  const auto from = options.sources.empty() ? std::nullopt : live_directory(options.sources.front());
  const auto to = live_directory(options.sink);
  const auto trainer = topology.trainer(control.rank());
  const auto engine = topology.inference_rank(control.rank());
  has_trainers_ = from.has_value();
  control.agreement.together([&] {
    if (from && trainer) {
      trainer_number_ = *trainer;
      trainer_manifest_ = manifest_of(*from, Role::kTrainer, *trainer, topology.trainers);
    }
    if (to && engine) engine_manifest_ = manifest_of(*to, Role::kEngine, *engine, topology.engine.ranks());
  });
}

Placement LiveEnds::choose_placement() {
  const std::string from = trainer_manifest_ ? trainer_manifest_->device() : "";
  const std::string to = engine_manifest_ ? engine_manifest_->device() : "";
  control_.agreement.together([&] {
    if (from.empty() || to.empty() || from == to) return;
    throw InputError(
        fmt::format("{}: is on {}, and {} on {}, but one rank is for both; start the job without --colocate",
                    trainer_manifest_->path, from, engine_manifest_->path, to));
  });
  std::array<std::int64_t, 2> on_gpu{from.empty() && to.empty() ? 0 : 1, 0};
  if (engine_manifest_ && to.empty()) on_gpu[1] = 1;  // an engine on the host
  control_.agreement.maximum(std::span<std::int64_t>(on_gpu));
  const bool gpu = on_gpu[0] > 0;
  control_.agreement.together([&] {
    if (gpu && on_gpu[1] > 0 && engine_manifest_ && to.empty()) {
      throw InputError(engine_manifest_->path +
                       ": this engine's memory is the host's, and other memory is on GPUs; move all engines "
                       "to GPUs, or the trainers to the host");
    }
    if (gpu && options_.transport == "mpi") {
      throw UsageError("--transport mpi: live memory is on GPUs; leave it out, or use nccl");
    }
    if (!gpu && options_.transport == "nccl") {
      throw UsageError("--transport nccl: live memory is the host's; leave it out, or use mpi");
    }
  });
  return weightcast::choose_placement(control_, gpu ? "nccl" : "mpi", from.empty() ? to : from);
}

void LiveEnds::open() {
  control_.agreement.together([&] {
    if (trainer_manifest_) trainer_ = std::make_shared<Exporter>(*trainer_manifest_);
    if (engine_manifest_) engine_ = std::make_shared<Exporter>(*engine_manifest_);
  });
  update_.emplace(control_, live_directory(options_.sink).value_or(""), trainer_.get(), engine_.get(),
                  patience_of(options_));
}

std::shared_ptr<ParameterMemory> LiveEnds::parameters() const {
  return engine_ ? live_parameter_memory(engine_) : nullptr;
}

std::unique_ptr<Source> LiveEnds::source(const Plan& plan, const Catalog& catalog,
                                         const BoundCheckpoint& from) const {
  if (!trainer_) return nullptr;
  const HeldWeights held =
      held_in_segments(trainer_->manifest(), from.checkpoint, from.binding.held, catalog);
  if (!trainer_->manifest().device().empty()) {
    return make_live_gpu_source(plan, catalog, trainer_number_, held, *trainer_);
  }
  return std::make_unique<LiveSource>(plan, catalog, trainer_number_, held, *trainer_);
}

}  // namespace weightcast
