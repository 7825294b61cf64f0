#include "launch/job/live_ends.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <limits>
#include <span>
#include <string_view>
#include <thread>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/job/export_map.hpp"
#include "live/folder.hpp"
#include "live/gpu_live.hpp"
#include "live/live_weights.hpp"
#include "live/manifest.hpp"
#include "live/published_layout.hpp"
#include "live/slurm_run.hpp"
#include "source/trainer_binding.hpp"

namespace weightcast {

namespace {

Binding bind_live(const Family& family, const Topology& topology, std::int64_t trainer,
                  const Checkpoint& published) {
  return topology.trainer_layout ? bind_trainer(family, *topology.trainer_layout, trainer, published)
                                 : bind(family, published);
}

/// Gives the trainers' layout, if there is one, what they have published shows of it.
void set_shown(const ShownLayout& shown, Topology& topology) {
  if (!topology.trainer_layout) return;
  topology.trainer_layout->padded_vocabulary = shown.padded_vocabulary;
  topology.trainer_layout->whole_linear_attention = shown.whole_linear_attention;
}

/// What a trainer has published, as a checkpoint. Throws InputError for one that has boxes of tensors where a
/// layout says what it holds, or a map that the first trainer has not; UsageError where it has published
/// another layout.
Checkpoint checkpoint_as_laid_out(const Manifest& manifest, const std::optional<TrainerLayout>& layout,
                                  const ExportMap* map) {
  if (layout && has_boxes(manifest)) {
    throw InputError(
        fmt::format("{}: has boxes of tensors, but {} says what each trainer holds; leave it out, or let "
                    "trainers publish their own tensors",
                    manifest.path, layout->option));
  }
  if (!layout && map == nullptr && published_map(manifest)) {
    throw InputError(
        fmt::format("{}: was published with an export map, but trainer 0 was not; let all publish "
                    "alike",
                    manifest.path));
  }
  require_published_layout(manifest, layout, map);
  return map == nullptr ? checkpoint_of(manifest) : checkpoint_of(manifest, *map);
}

std::vector<Holding> holding_of(const HeldWeights& held) {
  std::vector<Holding> holding;
  for (const HeldBox& box : held.boxes()) holding.push_back({box.tensor, box.box});
  return holding;
}

/// What each trainer holds, on every rank; the first ranks are the trainers. Collective.
std::vector<std::vector<Holding>> share_holdings(Control& control, const std::vector<Holding>& own,
                                                 std::int64_t trainers) {
  using Numbers = std::array<std::int64_t, 5>;
  std::string text;
  for (const Holding& held : own) {
    const Numbers numbers{held.tensor, held.box.row, held.box.rows, held.box.col, held.box.cols};
    text.append(reinterpret_cast<const char*>(numbers.data()), sizeof numbers);
  }
  std::vector<std::string> all = control.agreement.gather(text);
  std::vector<std::vector<Holding>> holdings;
  all.resize(static_cast<std::size_t>(trainers));
  for (std::int64_t trainer = 0; trainer < trainers; ++trainer) {
    const std::string of_trainer = control.agreement.broadcast(all[static_cast<std::size_t>(trainer)]);
    std::vector<Holding>& boxes = holdings.emplace_back();
    for (std::size_t at = 0; at < of_trainer.size(); at += sizeof(Numbers)) {
      Numbers numbers{};
      std::memcpy(numbers.data(), of_trainer.data() + at, sizeof numbers);
      boxes.push_back(
          {static_cast<std::uint32_t>(numbers[0]), {numbers[1], numbers[2], numbers[3], numbers[4]}});
    }
  }
  return holdings;
}

}  // namespace

std::chrono::seconds patience_of(const Options& options) {
  constexpr std::int64_t kAnswersOfAPhase = 4;
  return std::chrono::seconds(std::max<std::int64_t>(1, options.timeout / kAnswersOfAPhase));
}

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
  if (source && options.model.empty() && options.landing.empty()) {
    throw UsageError(
        "--source live:DIR: needs --model CONFIG_JSON, which says what the model is (or --landing FILE)");
  }
  if (source && options.sink == "none" && (options.command == "sync" || options.command == "serve")) {
    throw UsageError(
        "--source live:DIR: without --sink the trainers' offer would be taken, and nobody would have it; "
        "name "
        "--sink live:DIR, hdf5:DIR or safetensors:DIR");
  }
  if (source && options.has_weight_version) {
    throw UsageError("--weight-version: a live source has the version that the trainers offer; leave it out");
  }
  if (!source && !options.export_map.empty()) {
    throw UsageError(
        "--export-map: is of live trainers' own tensors; name --source live:DIR, or leave it out");
  }
  if (sink && options.no_verify) {
    throw UsageError("--no-verify: an engine is given nothing that was not verified; leave it out");
  }
}

Manifest read_manifest_of(const std::string& directory, Role role, std::int64_t rank, std::int64_t ranks) {
  const std::string path = manifest_path(directory, role, rank);
  std::error_code error;
  if (const auto status = std::filesystem::status(path, error);
      status.type() == std::filesystem::file_type::not_found) {
    refuse_missing(directory, role, rank, "the job's layout has " + counted(ranks, role_name(role)));
  }
  Manifest manifest = read_manifest(path);
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
  require_this_start(manifest);
  return manifest;
}

std::vector<LiveTrainer> load_live_trainers(const Options& options, const std::string& directory,
                                            const Family& family, Topology& topology) {
  std::vector<LiveTrainer> trainers;
  ShownLayout shown;
  for (std::int64_t rank = 0; rank < topology.trainers; ++rank) {
    LiveTrainer trainer;
    trainer.manifest = read_manifest_of(directory, Role::kTrainer, rank, topology.trainers);
    trainer.map = rank == 0 ? load_export_map(options, directory, trainer.manifest, topology.trainers)
                            : trainers.front().map;
    trainer.weights.checkpoint =
        checkpoint_as_laid_out(trainer.manifest, topology.trainer_layout, trainer.map.get());
    if (topology.trainer_layout) {
      shown.add(shown_layout(*topology.trainer_layout, trainer.weights.checkpoint));
    }
    trainers.push_back(std::move(trainer));
  }
  set_shown(shown, topology);
  for (std::size_t i = 0; i < trainers.size(); ++i) {
    BoundCheckpoint& weights = trainers[i].weights;
    weights.binding = bind_live(family, topology, static_cast<std::int64_t>(i), weights.checkpoint);
  }
  if (std::any_of(trainers.begin(), trainers.end(), [](const LiveTrainer& trainer) {
        return trainer.map != nullptr || has_boxes(trainer.manifest);
      })) {
    for (const LiveTrainer& trainer : trainers) {
      topology.holdings.push_back(holding_of(held_by(trainer, family.catalog())));
    }
  }
  return trainers;
}

void require_place_for_part(const Manifest& engine, const Family& family) {
  if (family.choice() == nullptr || !engine.window()) return;
  throw UsageError(engine.path +
                   ": its tensors come through a window to its own loader, which makes parameters of all of "
                   "them; leave --include and --exclude out");
}

HeldWeights held_by(const LiveTrainer& trainer, const Catalog& catalog) {
  const BoundCheckpoint& weights = trainer.weights;
  return held_in_segments(trainer.manifest, weights.checkpoint, weights.binding.held, catalog,
                          trainer.map.get());
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
      trainer_manifest_ = read_manifest_of(*from, Role::kTrainer, *trainer, topology.trainers);
    }
    if (to && engine)
      engine_manifest_ = read_manifest_of(*to, Role::kEngine, *engine, topology.engine.ranks());
  });
}

WireChoice LiveEnds::choose_wire() {
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
    if (gpu && engine_manifest_ && engine_manifest_->window()) {
      throw InputError(
          engine_manifest_->path +
          ": its tensors come through a window, which is in the host's memory, and other memory is "
          "on GPUs; publish what the job reads and writes in the host's memory, so that it runs "
          "over MPI");
    }
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
  return weightcast::choose_wire(control_, gpu ? "nccl" : "mpi", from.empty() ? to : from);
}

BoundCheckpoint LiveEnds::load_weights(const Family& family, Topology& topology) {
  BoundCheckpoint loaded;
  // Rows of the padded vocabulary; whether tensors are cut; whether linear attention is whole.
  std::array<std::int64_t, 3> learnt{0, 0, 0};
  map_ = load_export_map(control_, options_, live_directory(options_.sources.front()).value(),
                         trainer_manifest_ ? &*trainer_manifest_ : nullptr, topology.trainers);
  control_.agreement.together([&] {
    if (!trainer_manifest_) return;
    loaded.checkpoint = checkpoint_as_laid_out(*trainer_manifest_, topology.trainer_layout, map_.get());
    learnt[1] = map_ || has_boxes(*trainer_manifest_) ? 1 : 0;
    if (!topology.trainer_layout) return;
    const ShownLayout shown = shown_layout(*topology.trainer_layout, loaded.checkpoint);
    learnt[0] = shown.padded_vocabulary;
    learnt[2] = shown.whole_linear_attention ? 1 : 0;
  });
  control_.agreement.maximum(std::span<std::int64_t>(learnt));
  set_shown({learnt[0], learnt[2] != 0}, topology);
  control_.agreement.together([&] {
    if (!trainer_manifest_) return;
    loaded.binding = bind_live(family, topology, trainer_number_, loaded.checkpoint);
    if (compares_tied_head(options_)) require_tied(loaded.checkpoint, loaded.binding, family.catalog());
  });
  if (learnt[1] == 0) return loaded;
  std::vector<Holding> own;
  control_.agreement.together([&] {
    if (!trainer_manifest_) return;
    own = holding_of(held_in_segments(*trainer_manifest_, loaded.checkpoint, loaded.binding.held,
                                      family.catalog(), map_.get()));
  });
  topology.holdings = share_holdings(control_, own, topology.trainers);
  return loaded;
}

void LiveEnds::open(const Family& family) {
  control_.agreement.together([&] {
    if (engine_manifest_) require_place_for_part(*engine_manifest_, family);
    if (trainer_manifest_) trainer_ = std::make_shared<Exporter>(*trainer_manifest_);
    if (engine_manifest_) engine_ = std::make_shared<Exporter>(*engine_manifest_);
  });
  update_.emplace(control_, live_directory(options_.sink).value_or(""), trainer_.get(), engine_.get(),
                  patience_of(options_), family);
}

std::optional<ExpertMap> LiveEnds::published_experts(std::int64_t ep) {
  // Whether an engine has a table, and whether one has none.
  std::array<std::int64_t, 2> seen{0, 0};
  if (engine_) seen[engine_->manifest().expert_table.empty() ? 1 : 0] = 1;
  control_.agreement.maximum(std::span<std::int64_t>(seen));
  tables_ = seen[0] != 0;
  if (!tables_) return std::nullopt;
  control_.agreement.together([&] {
    if (!engine_) return;
    const Manifest& manifest = engine_->manifest();
    if (manifest.expert_table.empty()) {
      throw InputError(manifest.path +
                       ": does not say where experts sit, and other engines do; let all ranks "
                       "publish alike");
    }
    if (!table_) table_.emplace(manifest);
    const std::int64_t slots = manifest.expert_slots[1];
    if (slots % ep == 0) return;
    throw InputError(
        fmt::format("{}: has {} expert slots a layer, which ep={} does not divide; give the layout "
                    "of the engine",
                    manifest.path, slots, ep));
  });
  // Ranks of an engine change it one after the other.
  constexpr std::chrono::seconds kPatience{5};
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  ExpertMap map;
  for (;;) {
    constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();
    // The greatest key, and the negative of the least; whether the time is over on some rank.
    std::array<std::int64_t, 3> keys{kNone, kNone, std::chrono::steady_clock::now() > give_up ? 1 : 0};
    control_.agreement.together([&] {
      if (!engine_) return;
      map = table_->read();
      planned_ = key_of(map);
      keys[0] = planned_;
      keys[1] = -planned_;
    });
    control_.agreement.maximum(std::span<std::int64_t>(keys));
    if (keys[0] == -keys[1]) break;
    control_.agreement.together([&] {
      if (keys[2] == 0 || !engine_ || planned_ == keys[0]) return;
      throw IoError(fmt::format(
          "{}: has another expert map (epoch {}) than other ranks; let all ranks of an "
          "engine say one (weightcast_place_experts), and update replicas that differ in jobs of their own",
          engine_->manifest().path, map.placement.epoch));
    });
    control_.deadline.poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  map.ep = ep;
  const std::vector<std::string> all =
      control_.agreement.gather(engine_ && engine_->manifest().rank == 0 ? expert_map_text(map) : "");
  std::string text;
  if (control_.rank() == 0) text = *std::ranges::find_if(all, [](const auto& one) { return !one.empty(); });
  text = control_.agreement.broadcast(text);
  control_.agreement.together([&] { map = parse_expert_map(text, options_.sink); });
  return map;
}

void LiveEnds::plan_for(const ExpertPlacement& experts) {
  if (!tables_) return update_->plan_for(experts, nullptr);
  update_->plan_for(experts, [this] {
    if (!engine_) return;
    const ExpertMap now = table_->read();
    if (key_of(now) == planned_) return;
    throw IoError(
        fmt::format("{}: {} has moved its experts since the update was planned (its map is of epoch {} now); "
                    "run the update "
                    "again",
                    engine_->manifest().path, engine_->name(), now.placement.epoch));
  });
}

void LiveEnds::place_experts(const ExpertMap& map) {
  if (!table_) return;
  table_->write(map);
  planned_ = key_of(map);
}

std::shared_ptr<ParameterMemory> LiveEnds::parameters(const Family& family,
                                                      const EngineLayout& layout) const {
  if (!engine_) return nullptr;
  require_published_layout(engine_->manifest(), layout);
  const std::chrono::seconds patience = patience_of(options_);
  return layout.canonical() ? live_canonical_memory(engine_, family, patience)
                            : live_parameter_memory(engine_, family, patience);
}

std::unique_ptr<Source> LiveEnds::source(const Plan& plan, const Catalog& catalog,
                                         const BoundCheckpoint& from) const {
  if (!trainer_) return nullptr;
  const HeldWeights held =
      held_in_segments(trainer_->manifest(), from.checkpoint, from.binding.held, catalog, map_.get());
  if (!trainer_->manifest().device().empty()) {
    return make_live_gpu_source(plan, catalog, trainer_number_, held, *trainer_);
  }
  return std::make_unique<LiveSource>(plan, catalog, trainer_number_, held, *trainer_);
}

}  // namespace weightcast
