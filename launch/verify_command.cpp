#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/expert_slots.hpp"
#include "launch/files/parameter_verifier.hpp"
#include "launch/files/shard_set.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/landing.hpp"
#include "launch/layouts.hpp"
#include "launch/live/verify_live.hpp"
#include "launch/tensor_choice.hpp"
#include "report/activity.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "storage/input_file.hpp"
#include "storage/reader.hpp"

namespace weightcast {

namespace {

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

std::string placed_by(const std::string& fingerprint, std::int64_t epoch) {
  return WrittenPlacement{epoch, fingerprint}.none()
             ? "without a map"
             : fmt::format("by map {} of epoch {}", excerpt(fingerprint), epoch);
}

/// Throws UsageError unless the map is the one that the shards were written with, if any.
void require_same_placement(const std::string& directory, const WrittenPlacement& written,
                            const ExpertPlacement& given) {
  if (written.fingerprint == given.fingerprint() && written.epoch == given.epoch) return;
  throw UsageError(fmt::format(
      "{}: experts were placed {}, not {}; name with --expert-map the map of the update, or with --placement "
      "and --redundant-experts how it placed them, if it did",
      directory, placed_by(written.fingerprint, written.epoch), placed_by(given.fingerprint(), given.epoch)));
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

  /// Throws InputError when it holds more than these.
  void require_nothing_else(const std::vector<Parameter>& parameters) const {
    if (file_.tensors.size() != parameters.size()) {
      std::set<std::string_view> others;
      for (const StoredTensor& tensor : file_.tensors) others.insert(tensor.name);
      for (const Parameter& parameter : parameters) others.erase(parameter.name);
      throw InputError(fmt::format("{}: holds {}, which is no parameter of this rank; run the update again",
                                   shard_.path, others.empty() ? "a dataset twice" : *others.begin()));
    }
  }

  /// After the last read. Throws IoError when it has changed.
  void require_unchanged() const { reader_.require_unchanged(); }

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
  EngineLayout layout = common_layout(directory, shards);
  const std::int64_t version = shards.front().integer("weight_version");
  if (options.has_weight_version && options.weight_version != version) {
    throw VerifyError(fmt::format("{}: holds version {}, not {}; the shards are stale", directory, version,
                                  options.weight_version));
  }
  const std::shared_ptr<const LandingMap> landing = load_landing(options);
  require_same_landing(directory, layout, landing.get());
  const std::optional<ExpertMap> expert_map = load_expert_map(options);
  std::optional<TrainerLayout> trainers = trainer_layout_of(options);
  Activity activity(options.progress, true);
  activity.begin("reading metadata of the source");
  ReferenceWeights source(options, landing, trainers, layout.quantizer, directory);
  layout.option = directory;
  place_experts(options, expert_map, source.model(), layout);
  require_same_placement(directory, placement_of(shards.front()), layout.experts);
  const Choice* const choice = source.family().choice();
  Differences differences;
  std::int64_t bytes = 0;
  std::int64_t unwritten = 0;
  for (const Shard& shard : shards) {
    std::vector<Parameter> parameters;
    try {
      parameters = source.family().parameters(layout, engine_rank(layout, shard.integer("rank")));
    } catch (const UsageError& error) {
      // What cannot be divided is what the patterns divide.
      if (choice != nullptr) throw;
      // The layout comes from the file, not from an option.
      throw InputError(
          fmt::format("{}: its layout does not fit the model of {}: {}; name the source of the update",
                      shard.path, options.sources.front(), error.what()));
    }
    const ShardParameters kept(shard);
    activity.begin("comparing " + shard.path);
    bytes +=
        ParameterVerifier(source.family().catalog(), kept, source.planes(), differences).verify(parameters);
    unwritten += unwritten_bytes(parameters);
    if (choice == nullptr) kept.require_nothing_else(parameters);
    kept.require_unchanged();
  }
  activity.end();
  source.require_unchanged();
  differences.require_none(source.family().catalog());
  print_line(fmt::format("{}: {} shards of version {} hold {}{} exactly, {} compared{}", directory,
                         shards.size(), version, options.sources.front(),
                         layout.quantizer ? " quantised to " + quantizer_name(*layout.quantizer) : "",
                         format_bytes(bytes), compared_text(source.family())));
  if (unwritten > 0) print_line(fmt::format("{}: {}", directory, unwritten_text(unwritten)));
  if (json != nullptr) {
    const nlohmann::ordered_json report = {{"weightcast", "verify"},
                                           {"status", "done"},
                                           {"weight_version", version},
                                           {"shards", shards.size()},
                                           {"bytes", bytes},
                                           {"expert_epoch", layout.experts.epoch},
                                           {"expert_placement", layout.experts.fingerprint()},
                                           {"unwritten_bytes", unwritten},
                                           {"partial", choice_json_of(source.family())},
                                           {"error", nullptr}};
    json->write(json_report(report));
  }
}

}  // namespace weightcast
