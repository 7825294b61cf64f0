#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/files/parameter_verifier.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/landing.hpp"
#include "launch/layouts.hpp"
#include "launch/live/verify_live.hpp"
#include "model/layer_counts.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "storage/attributes.hpp"
#include "storage/input_file.hpp"
#include "storage/rank_file.hpp"
#include "storage/reader.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// A shard file and what its attributes say.
struct Shard {
  std::string path;
  RankFile file;          ///< what its name says
  FileIdentity identity;  ///< of the file whose attributes these are
  Attributes attributes;

  std::int64_t integer(const std::string& name) const {
    const auto value = integer_in(attributes, name);
    if (!value) throw unfit(name, "one integer");
    return *value;
  }
  std::string text(const std::string& name) const {
    const auto found = attributes.find(name);
    const auto* value = found == attributes.end() ? nullptr : std::get_if<std::string>(&found->second);
    if (value == nullptr) throw unfit(name, "one text");
    return *value;
  }
  /// Empty when it is not there.
  std::string optional_text(const std::string& name) const {
    return attributes.contains(name) ? text(name) : std::string();
  }

 private:
  InputError unfit(const std::string& name, const char* expected) const {
    const bool there = attributes.contains(name);
    return InputError(
        fmt::format("{}: attribute weightcast.{} is {}; is it a shard file of this program? run "
                    "the update again",
                    path, name, there ? std::string("not ") + expected : "missing"));
  }
};

/// The shard files of a folder by rank, all of one format.
std::vector<RankFile> list_shards(const std::string& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error))
    throw IoError(fmt::format("{}: no such folder of shard files; name that of --sink", directory));
  std::vector<RankFile> files;
  fs::directory_iterator entries(directory, error);
  if (error)
    throw IoError(fmt::format("cannot list {}: {}; check the permissions", directory, error.message()));
  for (const auto& entry : entries) {
    if (const auto file = parse_rank_file(kShardStem, entry.path().filename().string())) {
      files.push_back(*file);
    }
  }
  if (files.empty()) {
    throw InputError(fmt::format(
        "{}: no shard files (rank-<n>.h5 or rank-<n>.safetensors); name the folder of --sink", directory));
  }
  std::ranges::sort(files, {}, [](const RankFile& file) { return std::pair(file.rank, file.format); });
  const RankFile first = files.front();
  const auto other = std::ranges::find_if_not(
      files, [&](FileFormat format) { return format == first.format; }, &RankFile::format);
  if (other != files.end()) {
    throw InputError(
        fmt::format("{}: mixed shards: {} and {} are of two formats; remove those that are not meant, or run "
                    "the update again",
                    directory, rank_file_name(kShardStem, first), rank_file_name(kShardStem, *other)));
  }
  return files;
}

std::vector<Shard> read_shards(const std::string& directory) {
  std::vector<Shard> shards;
  for (const RankFile& file : list_shards(directory)) {
    const std::string path = (fs::path(directory) / rank_file_name(kShardStem, file)).string();
    const FileIdentity identity = InputFile(path).identity();
    shards.push_back({path, file, identity, read_attributes(path)});
  }
  return shards;
}

/// Throws InputError unless a file's name and attributes agree on which rank's it is.
void require_own_place(const EngineLayout& layout, const Shard& shard) {
  const std::int64_t rank = shard.integer("rank");
  const EngineRank place = engine_rank(layout, rank);
  if (shard.file.rank != rank || shard.integer("replica") != place.replica ||
      shard.integer("pp_rank") != place.pp || shard.integer("tp_rank") != place.tp ||
      shard.integer("ep_rank") != place.ep) {
    throw InputError(
        fmt::format("{}: its attributes say rank {} (replica {}, pp {}, tp {}, ep {}), which its name or "
                    "the layout contradicts; was it renamed?",
                    shard.path, rank, shard.integer("replica"), shard.integer("pp_rank"),
                    shard.integer("tp_rank"), shard.integer("ep_rank")));
  }
}

/// Whose names a shard's parameters have. Shards of before this was recorded are SGLang's, or say that they
/// are canonical.
Engine engine_of(const Shard& shard) {
  const std::string name = shard.optional_text("engine");
  if (name.empty()) return shard.optional_text("parameters") == "canonical" ? Engine::kHf : Engine::kSglang;
  const auto engine = find_engine(name);
  if (!engine) {
    throw InputError(
        fmt::format("{}: has the parameters of engine {}, which is not known here; verify with the version "
                    "of the program that wrote it",
                    shard.path, excerpt(name)));
  }
  return *engine;
}

/// Throws InputError unless the files are all ranks of one update.
EngineLayout common_layout(const std::string& directory, const std::vector<Shard>& shards) {
  const Shard& first = shards.front();
  for (const Shard& shard : shards) {
    if (shard.text("kind") != "shard")
      throw InputError(fmt::format("{}: is no shard file; run the update again", shard.path));
    for (const char* name : {"weight_version", "replicas", "pp_size", "tp_size", "ep_size"}) {
      if (shard.integer(name) != first.integer(name)) {
        throw InputError(fmt::format("{}: mixed shards: {} has {} {}, {} has {}; run the update again",
                                     directory, fs::path(first.path).filename().string(), name,
                                     first.integer(name), fs::path(shard.path).filename().string(),
                                     shard.integer(name)));
      }
    }
    for (const char* name : {"engine", "parameters", "quantizer", "activation_scales", "stage_layers",
                             "expert_placement", "landing"}) {
      if (shard.optional_text(name) != first.optional_text(name)) {
        throw InputError(fmt::format("{}: mixed shards: {} '{}' and '{}'; run the update again", directory,
                                     name, excerpt(first.optional_text(name)),
                                     excerpt(shard.optional_text(name))));
      }
    }
    if (shard.text("moe_layout") != first.text("moe_layout")) {
      throw InputError(fmt::format("{}: mixed shards: MoE layouts {} and {}; run the update again", directory,
                                   excerpt(first.text("moe_layout")), excerpt(shard.text("moe_layout"))));
    }
    if (shard.optional_text("update") != first.optional_text("update")) {
      throw InputError(
          fmt::format("{}: mixed shards: {} and {} are of different updates; run the update again", directory,
                      fs::path(first.path).filename().string(), fs::path(shard.path).filename().string()));
    }
  }
  EngineLayout layout;
  layout.replicas = first.integer("replicas");
  layout.pp = first.integer("pp_size");
  layout.tp = first.integer("tp_size");
  layout.ep = first.integer("ep_size");
  layout.moe_layout = first.text("moe_layout");
  layout.engine = engine_of(first);
  layout.landing = first.optional_text("landing");
  if (const std::string name = first.optional_text("quantizer"); !name.empty()) {
    try {
      layout.quantizer = parse_quantizer(name);
      layout.activations = parse_activation_scales(first.text("activation_scales"));
    } catch (const UsageError& error) {
      throw InputError(
          fmt::format("{}: attributes of its quantiser: {}; run the update again", first.path, error.what()));
    }
  }
  if (const std::string placement = first.optional_text("expert_placement");
      !placement.empty() && placement != layout.experts.fingerprint()) {
    throw InputError(
        fmt::format("{}: its experts were placed by map {}, which is not known here; verify with the version "
                    "of the program that wrote it",
                    first.path, excerpt(placement)));
  }
  if (const std::string stages = first.optional_text("stage_layers"); !stages.empty()) {
    try {
      layout.stage_layers = parse_layer_counts("attribute stage_layers", stages);
    } catch (const UsageError& error) {
      throw InputError(fmt::format("{}: {}; run the update again", first.path, error.what()));
    }
  }
  // As large as options may name them: products of the three stay numbers.
  constexpr std::int64_t kMost = 1 << 20;
  const auto possible = [](std::int64_t size) { return size >= 1 && size <= kMost; };
  if (!possible(layout.replicas) || !possible(layout.pp) || !possible(layout.tp) || !possible(layout.ep) ||
      layout.tp % layout.ep != 0) {
    throw InputError(fmt::format("{}: impossible layout tp={} ep={} pp={} replicas={}; run the update again",
                                 first.path, layout.tp, layout.ep, layout.pp, layout.replicas));
  }
  for (const Shard& shard : shards) require_own_place(layout, shard);
  for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) {
    const auto at = static_cast<std::size_t>(rank);
    if (at >= shards.size() || shards[at].integer("rank") != rank) {
      throw InputError(fmt::format("{}: {} of {} is missing; run the update again", directory,
                                   rank_file_name(kShardStem, {rank, first.file.format}), layout.ranks()));
    }
  }
  if (static_cast<std::int64_t>(shards.size()) != layout.ranks()) {
    throw InputError(fmt::format("{}: {} shard files for {} ranks; remove those of an earlier layout",
                                 directory, shards.size(), layout.ranks()));
  }
  return layout;
}

/// Throws UsageError unless the map is the one that the shards were written with, if any.
void require_same_landing(const std::string& directory, const EngineLayout& layout,
                          const LandingMap* landing) {
  if (layout.landing == (landing == nullptr ? "" : landing->hash)) return;
  if (landing == nullptr) {
    throw UsageError(fmt::format("{}: parameters lie as landing map {} says; name that map with --landing",
                                 directory, excerpt(layout.landing)));
  }
  throw UsageError(fmt::format("--landing {}: is map {}, but the shards of {} were written with {}",
                               landing->origin, landing->hash, directory,
                               layout.landing.empty()
                                   ? "none: leave it out"
                                   : fmt::format("map {}: name that one", excerpt(layout.landing))));
}

/// What a shard file holds.
class ShardParameters final : public KeptParameters {
 public:
  explicit ShardParameters(const Shard& shard)
      : shard_(shard), file_(read_checkpoint(shard.path)), reader_(file_) {
    // What the attributes say holds for no other file of that name.
    if (file_.files.front().identity != shard.identity) {
      throw IoError(
          fmt::format("{}: was replaced or written to while it was compared; run verify again", shard.path));
    }
  }

  const std::string& name() const override { return shard_.path; }

  void require(const Parameter& parameter) const override {
    const StoredTensor* stored = file_.find(parameter.name);
    if (stored == nullptr) {
      throw InputError(fmt::format("{}: {} is missing; run the update again", shard_.path, parameter.name));
    }
    file_.require_readable(*stored);
    if (stored->shape == parameter.shape && stored->dtype == parameter.dtype) return;
    throw InputError(fmt::format("{}: {} is {} {} but its layout wants {} {}; run the update again",
                                 shard_.path, parameter.name, dtype_name(stored->dtype),
                                 stored->shape.to_string(), dtype_name(parameter.dtype),
                                 parameter.shape.to_string()));
  }

  void read(const Parameter& parameter, const Box& box, std::span<std::byte> to) const override {
    reader_.read(*file_.find(parameter.name), box, to);
  }

  /// After the last read. Throws InputError when it holds more than these, IoError when it has changed.
  void require_nothing_else(const std::vector<Parameter>& parameters) const {
    if (file_.tensors.size() != parameters.size()) {
      std::set<std::string_view> others;
      for (const StoredTensor& tensor : file_.tensors) others.insert(tensor.name);
      for (const Parameter& parameter : parameters) others.erase(parameter.name);
      throw InputError(fmt::format("{}: holds {}, which is no parameter of this rank; run the update again",
                                   shard_.path, others.empty() ? "a dataset twice" : *others.begin()));
    }
    reader_.require_unchanged();
  }

 private:
  const Shard& shard_;
  Checkpoint file_;
  CheckpointReader reader_;
};

}  // namespace

void run_verify(const Options& options, OutputFile* json) {
  if (options.arguments.size() != 1 || options.sources.size() != 1) {
    throw UsageError("write weightcast verify DIR --source PATH, one of each");
  }
  if (const auto live = live_directory(options.arguments.front())) return verify_live(*live, options, json);
  const std::string& directory = options.arguments.front();
  const std::vector<Shard> shards = read_shards(directory);
  const EngineLayout layout = common_layout(directory, shards);
  const std::int64_t version = shards.front().integer("weight_version");
  if (options.has_weight_version && options.weight_version != version) {
    throw VerifyError(fmt::format("{}: holds version {}, not {}; the shards are stale", directory, version,
                                  options.weight_version));
  }
  const std::shared_ptr<const LandingMap> landing = load_landing(options);
  require_same_landing(directory, layout, landing.get());
  std::optional<TrainerLayout> trainers = trainer_layout_of(options);
  ReferenceWeights source(options, landing, trainers, layout.quantizer, directory);
  std::int64_t bytes = 0;
  for (const Shard& shard : shards) {
    std::vector<Parameter> parameters;
    try {
      parameters = source.family().parameters(layout, engine_rank(layout, shard.integer("rank")));
    } catch (const UsageError& error) {
      // The layout comes from the file, not from an option.
      throw InputError(
          fmt::format("{}: its layout does not fit the model of {}: {}; name the source of the update",
                      shard.path, options.sources.front(), error.what()));
    }
    const ShardParameters kept(shard);
    bytes += ParameterVerifier(source.family().catalog(), kept, source.planes()).verify(parameters);
    kept.require_nothing_else(parameters);
  }
  source.require_unchanged();
  print_line(fmt::format("{}: {} shards of version {} hold {}{} exactly, {} compared", directory,
                         shards.size(), version, options.sources.front(),
                         layout.quantizer ? " quantised to " + quantizer_name(*layout.quantizer) : "",
                         format_bytes(bytes)));
  if (json != nullptr) {
    const nlohmann::ordered_json report = {
        {"weightcast", "verify"},  {"status", "done"}, {"weight_version", version},
        {"shards", shards.size()}, {"bytes", bytes},   {"error", nullptr}};
    json->write(json_report(report));
  }
}

}  // namespace weightcast
