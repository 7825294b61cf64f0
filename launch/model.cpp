#include "launch/model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.hpp"
#include "launch/config_text.hpp"
#include "launch/files/source_files.hpp"
#include "launch/job/live_ends.hpp"
#include "model/landing/landed_family.hpp"
#include "model/layouts/moe_layout.hpp"
#include "source/shard_copies.hpp"
#include "source/trainer_binding.hpp"
#include "storage/foreign_file.hpp"
#include "storage/input_file.hpp"
#include "storage/trainer_shard.hpp"

namespace weightcast {

namespace {

/// As bind(). The line of a checkpoint that does not fit says which config it does not fit.
Binding bind_to(const Model& model, const Checkpoint& checkpoint) {
  try {
    return bind(*model.family, checkpoint);
  } catch (const InputError& error) {
    if (!model.config) throw;
    throw InputError(fmt::format("{} (the model is what {} says)", error.what(), model.config->origin()));
  }
}

/// Throws UsageError where the experts' layout takes no weights that are quantised so, whatever the model's
/// sizes are: a size that the quantiser cannot take is no reason to name then.
void require_taken_by_layout(const Options& options, const Catalog& catalog) {
  const bool has_experts = std::ranges::any_of(
      catalog.tensors(), [](const Tensor& tensor) { return tensor.expert != Tensor::kNone; });
  if (options.quantize.empty() || options.moe_layout.empty() || !has_experts) return;
  // Experts of no size meet every rule of sizes.
  find_moe_layout(options.moe_layout).require({.quantizer = parse_quantizer(options.quantize)});
}

/// Behind the name of a model what of its draft layers is sent.
const char* drafts_text(const ModelConfig& config) {
  switch (config.drafts()) {
    case Drafts::kIncluded:
      return " with draft layers";
    case Drafts::kAlone:
      return ", its draft model";
    case Drafts::kLeftOut:
      break;
  }
  return "";
}

/// What config and landing map, whichever there are, make of a model, and the patterns leave of it; it has no
/// sources yet.
Model make_model(const ConfigText& text, const Options& options,
                 const std::shared_ptr<const LandingMap>& landing) {
  Model model;
  TensorPatterns& patterns = model.patterns;
  patterns = TensorPatterns(options);
  // What sees or hears is converted as it is, or said to be left out.
  const bool converts = options.command == "convert";
  const LeavesOut leaves_out = [&](std::string_view name) { return converts || patterns.leave_out(name); };
  if (!text.origin.empty()) model.config = make_config(text, options);
  if (!landing) {
    model.family = make_family(*model.config, leaves_out);
    require_taken_by_layout(options, model.family->catalog());
    model.title = fmt::format("{}{} ({})", model.config->architecture(), drafts_text(*model.config),
                              model.config->origin());
  } else {
    const bool described = model.config && names_family(*model.config);
    model.family = make_landed_family(landing, described ? make_family(*model.config, leaves_out) : nullptr);
    model.title = fmt::format("{} ({})", landing->architecture, landing->title());
  }
  model.family = patterns.choose(std::move(model.family));
  require_no_files(options, *model.family);
  return model;
}

/// Whether a source is the trainers' shards. Throws UsageError when nobody says how they divide the model,
/// InputError when there are more than the layout has trainers.
bool is_sharded(const std::string& source, const std::optional<TrainerLayout>& trainers) {
  const std::int64_t shards = count_trainer_shards(source);
  if (shards == 0) return false;
  if (const std::string other = whole_checkpoint_in(source); !other.empty()) {
    throw InputError(fmt::format("{}: holds trainers' shards and {}, which is none; remove what is not meant",
                                 source, other));
  }
  if (!trainers) {
    throw UsageError(
        fmt::format("--source {}: holds trainers' shards; say with --trainer-alloc how they divide "
                    "the model",
                    source));
  }
  if (shards > trainers->ranks()) {
    throw InputError(
        fmt::format("{}: holds a shard of trainer {} but {} has {} trainers; name the layout that the "
                    "shards were written for",
                    source, shards - 1, trainers->option, trainers->ranks()));
  }
  return true;
}

/// Throws InputError when a trainer's shard is of another version or conversion than the first one's, or when
/// only one of them says whose it is.
void require_same_origin(const TrainerShard& shard, const std::optional<std::int64_t>& version,
                         const std::string& id, bool labelled) {
  const std::string& path = shard.checkpoint.path;
  if (shard.checkpoint.weight_version != version) {
    const auto text = [](const std::optional<std::int64_t>& value) {
      return value ? fmt::format("weight version {}", *value) : std::string("no weight version");
    };
    throw InputError(fmt::format("{} has {} but the shard of trainer 0 has {}; write the shards again", path,
                                 text(shard.checkpoint.weight_version), text(version)));
  }
  if (shard.id != id) {
    throw InputError(
        fmt::format("{} was not written together with the shard of trainer 0; write the shards again", path));
  }
  if (shard.labelled != labelled) {
    throw InputError(fmt::format(
        "{} {} of which trainer and layout it is, but the shard of trainer 0 {}; write the shards "
        "again",
        path, shard.labelled ? "says" : "does not say", labelled ? "does" : "does not"));
  }
}

/// Throws InputError when the shards of a source pad the vocabulary otherwise than those of an earlier one,
/// or have linear attention in another form.
void set_shown(const std::string& source, const ShownLayout& shown, TrainerLayout& trainers) {
  const bool first = trainers.padded_vocabulary == 0;
  if (!first && shown.padded_vocabulary != trainers.padded_vocabulary) {
    throw InputError(
        fmt::format("{}: the trainers' embedding has {} rows, but {} in an earlier source; sync them in "
                    "jobs of their own",
                    source, shown.padded_vocabulary, trainers.padded_vocabulary));
  }
  if (!first && shown.whole_linear_attention != trainers.whole_linear_attention) {
    throw InputError(fmt::format(
        "{}: linear attention is {} in these shards, but not in an earlier source; sync them in jobs of "
        "their own",
        source, shown.whole_linear_attention ? "whole on each trainer" : "cut between trainers"));
  }
  trainers.padded_vocabulary = shown.padded_vocabulary;
  trainers.whole_linear_attention = shown.whole_linear_attention;
}

OtherFiles other_files_of(const Options& options) {
  return options.external_data ? OtherFiles::kBelowFolder : OtherFiles::kRefused;
}

/// Raises each of the values to the other's.
void raise(std::vector<std::int64_t>& values, const std::vector<std::int64_t>& others) {
  std::ranges::transform(values, others, values.begin(),
                         [](std::int64_t a, std::int64_t b) { return std::max(a, b); });
}

void load_shards(const Options& options, const std::string& source, TrainerLayout& trainers, Model& model) {
  std::vector<Checkpoint> shards;
  ShownLayout shown;
  std::string id;
  bool labelled = false;
  for (std::int64_t rank = 0; rank < trainers.ranks(); ++rank) {
    TrainerShard shard = read_trainer_shard(source, rank, trainers.to_string(), other_files_of(options));
    if (rank == 0) {
      id = shard.id;
      labelled = shard.labelled;
    }
    shards.push_back(shard.checkpoint);
    require_same_origin(shard, shards.front().weight_version, id, labelled);
    shown.add(shown_layout(trainers, shards.back()));
  }
  set_shown(source, shown, trainers);
  const Catalog& catalog = model.family->catalog();
  std::vector<std::int64_t> known(catalog.size(), 0);
  std::vector<std::int64_t> known_tied(static_cast<std::size_t>(trainers.tp), 0);
  std::vector<std::int64_t> samples(shards.size(), 0);
  std::vector<std::int64_t> boxes(shards.size(), 0);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const auto rank = static_cast<std::int64_t>(i);
    const Binding binding = bind_trainer(*model.family, trainers, rank, shards[i]);
    const std::vector<std::int64_t> own = digests_of_small(catalog, shards[i], binding.held);
    require_equal_replicas(catalog, shards[i].path, own, known);
    raise(known, own);
    if (!labelled) samples[i] = sample_of(shards[i]);
    boxes[i] = boxes_of(binding.held);
    // Of replicas the first is taken.
    const TrainerRank place = trainer_rank(trainers, rank);
    if (!compares_tied_head(options) || place.dp > 0 || place.cp > 0) continue;
    const std::vector<std::int64_t> tied = digests_of_tied(*model.family, trainers, rank, shards[i]);
    require_equal_tied(shards[i].path, tied, known_tied);
    raise(known_tied, tied);
  }
  require_distinct_shards(source, samples, boxes);
  JoinedTrainers joined = join_trainers(*model.family, trainers, shards);
  joined.checkpoint.path = source;
  joined.checkpoint.weight_version = shards.front().weight_version;
  model.sources.push_back({std::move(joined.checkpoint), std::move(joined.binding)});
}

/// This rank's part of a sharded source. Collective.
BoundCheckpoint load_own_shard(Control& control, const Options& options, const std::string& source,
                               const Family& family, Topology& topology) {
  TrainerLayout& trainers = *topology.trainer_layout;
  const auto rank = topology.trainer(control.rank());
  TrainerShard shard;
  // Rows of the vocabulary, and of the first trainer: whether there is a version, which, whether it is
  // labelled. Of all, whether linear attention is whole.
  std::array<std::int64_t, 5> common{0, 0, 0, 0, 0};
  control.agreement.together([&] {
    if (!rank) return;
    shard = read_trainer_shard(source, *rank, trainers.to_string(), other_files_of(options));
    const ShownLayout shown = shown_layout(trainers, shard.checkpoint);
    common[0] = shown.padded_vocabulary;
    common[4] = shown.whole_linear_attention ? 1 : 0;
    const auto& version = shard.checkpoint.weight_version;
    if (*rank != 0) return;
    if (version) {
      common[1] = 1;
      common[2] = *version;
    }
    common[3] = shard.labelled ? 1 : 0;
  });
  control.agreement.maximum(std::span<std::int64_t>(common));
  const std::string id = control.agreement.broadcast(shard.id);
  const Catalog& catalog = family.catalog();
  std::vector<std::int64_t> own(catalog.size(), 0);
  std::vector<std::int64_t> own_tied(static_cast<std::size_t>(trainers.tp), 0);
  std::vector<std::int64_t> samples(static_cast<std::size_t>(trainers.ranks()), 0);
  std::vector<std::int64_t> boxes(samples.size(), 0);
  Binding binding;
  control.agreement.together([&] {
    const auto version = common[1] != 0 ? std::optional(common[2]) : std::nullopt;
    set_shown(source, {common[0], common[4] != 0}, trainers);
    if (rank) {
      require_same_origin(shard, version, id, common[3] != 0);
      binding = bind_trainer(family, trainers, *rank, shard.checkpoint);
      own = digests_of_small(catalog, shard.checkpoint, binding.held);
      if (!shard.labelled) samples.at(static_cast<std::size_t>(*rank)) = sample_of(shard.checkpoint);
      boxes.at(static_cast<std::size_t>(*rank)) = boxes_of(binding.held);
      if (compares_tied_head(options)) {
        own_tied = digests_of_tied(family, trainers, *rank, shard.checkpoint);
      }
    }
    shard.checkpoint.weight_version = version;
  });
  std::vector<std::int64_t> known = own;
  std::vector<std::int64_t> known_tied = own_tied;
  control.agreement.maximum(std::span<std::int64_t>(known));
  control.agreement.maximum(std::span<std::int64_t>(known_tied));
  control.agreement.maximum(std::span<std::int64_t>(samples));
  control.agreement.maximum(std::span<std::int64_t>(boxes));
  control.agreement.together([&] {
    require_distinct_shards(source, samples, boxes);
    require_equal_replicas(catalog, shard.checkpoint.path, own, known);
    require_equal_tied(shard.checkpoint.path, own_tied, known_tied);
  });
  // From now on what the user named: the file is in `files`.
  shard.checkpoint.path = source;
  return {std::move(shard.checkpoint), std::move(binding)};
}

}  // namespace

Checkpoint read_source(const Options& options, const std::string& path) {
  return read_files_of(path, [&] { return read_checkpoint(path, other_files_of(options)); });
}

bool compares_tied_head(const Options& options) {
  return options.tied_head == "refuse";
}

void require_equal_copies(const Options& options, const Family& family, const BoundCheckpoint& source,
                          ThreadPool& readers, const WorkShare& share, const std::function<void()>& poll) {
  if (!compares_tied_head(options)) return;
  require_equal_copies(family.catalog(), source.checkpoint, source.binding, readers, share, poll);
}

Model load_model(const Options& options, const std::shared_ptr<const LandingMap>& landing,
                 std::optional<TrainerLayout>& trainers) {
  const ConfigText text = read_config(options);
  Model model = make_model(text, options, landing);
  const std::vector<std::string> unmatched = model.patterns.unmatched();
  std::vector<std::int64_t> fits(unmatched.size(), 0);
  for (const std::string& source : options.sources) {
    if (live_directory(source))
      throw UsageError(source + ": live memory is for sync, serve, bench and plan; name a checkpoint");
    if (is_sharded(source, trainers)) {
      load_shards(options, source, *trainers, model);
    } else {
      Checkpoint checkpoint = read_source(options, source);
      Binding binding = bind_to(model, checkpoint);
      raise(fits, fits_any(unmatched, binding.left_out));
      model.sources.push_back({std::move(checkpoint), std::move(binding)});
    }
  }
  if (model.sources.empty()) return model;
  model.patterns.require_matched(model.family->whole_catalog(), fits);
  add_texts(model.sources.front().checkpoint, text.files);
  require_texts_unchanged(model.sources.front().checkpoint);
  return model;
}

Model load_model(Control& control, const Options& options, const std::shared_ptr<const LandingMap>& landing,
                 Topology& topology, LiveEnds* live) {
  ConfigText text;
  control.agreement.together([&] {
    if (control.rank() != 0) return;
    text = read_config(options);
  });
  for (std::string* part : {&text.origin, &text.text, &text.modelopt_path, &text.modelopt}) {
    *part = control.agreement.broadcast(*part);
  }
  Model model;
  control.agreement.together([&] { model = make_model(text, options, landing); });
  const std::vector<std::string> unmatched = model.patterns.unmatched();
  std::vector<std::int64_t> fits(unmatched.size(), 0);
  for (const std::string& source : options.sources) {
    const bool is_live = live != nullptr && live->has_trainers();
    model.sources.push_back(is_live ? live->load_weights(*model.family, topology)
                                    : load_source(control, options, source, model, topology));
    raise(fits, fits_any(unmatched, model.sources.back().binding.left_out));
  }
  if (!fits.empty()) {
    // What trainers have published each of them knows for itself.
    control.agreement.maximum(std::span<std::int64_t>(fits));
    control.agreement.together([&] { model.patterns.require_matched(model.family->whole_catalog(), fits); });
  }
  // The first rank alone has read it. As a trainer it compares after its last read.
  if (!model.sources.empty()) add_texts(model.sources.front().checkpoint, text.files);
  return model;
}

BoundCheckpoint load_source(Control& control, const Options& options, const std::string& source,
                            const Model& model, Topology& topology) {
  // A thousand ranks that open the same headers would be a burden for a file system; one is none.
  std::vector<std::byte> headers;  // none: the trainers' shards
  std::vector<CheckpointFile> texts;
  control.agreement.together([&] {
    if (control.rank() != 0 || is_sharded(source, topology.trainer_layout)) return;
    Checkpoint checkpoint = read_source(options, source);
    headers = serialize(checkpoint);
    texts = std::move(checkpoint.texts);
  });
  headers = control.agreement.broadcast(std::move(headers));
  if (headers.empty()) return load_own_shard(control, options, source, *model.family, topology);
  BoundCheckpoint loaded;
  control.agreement.together([&] {
    loaded.checkpoint = deserialize_checkpoint(headers);
    loaded.checkpoint.texts = std::move(texts);
    if (topology.trainer(control.rank())) adopt_local_files(loaded.checkpoint);
    loaded.binding = bind_to(model, loaded.checkpoint);
  });
  // What another host has adopted as a copy of its own must not be what has come in the place of this file.
  control.agreement.together([&] {
    if (control.rank() == 0) require_files_unchanged(loaded.checkpoint);
  });
  return loaded;
}

}  // namespace weightcast
