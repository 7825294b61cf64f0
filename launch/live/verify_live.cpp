#include "launch/live/verify_live.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/expert_slots.hpp"
#include "launch/files/parameter_verifier.hpp"
#include "launch/landing.hpp"
#include "launch/layouts.hpp"
#include "launch/tensor_choice.hpp"
#include "live/expert_table.hpp"
#include "live/exporter.hpp"
#include "live/folder.hpp"
#include "live/live_weights.hpp"
#include "live/manifest.hpp"
#include "live/published_layout.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"
#include "session/gpu.hpp"

namespace weightcast {

namespace {

/// Makes the GPU that an engine's memory is on the current device.
void use_gpu_of(const Manifest& manifest) {
  const std::string uuid = manifest.device();
  if (uuid.empty()) return;
  const VisibleGpus visible = visible_gpus();
  const auto found = std::find_if(visible.gpus.begin(), visible.gpus.end(),
                                  [&](const VisibleGpu& gpu) { return gpu.uuid == uuid; });
  if (found != visible.gpus.end()) {
    use_gpu(*found);
    return;
  }
  throw IoError(
      fmt::format("{}: is on {}, which this process does not see ({})", manifest.path, uuid,
                  visible.gpus.empty() ? visible.why_none : "set CUDA_VISIBLE_DEVICES so that it does"));
}

/// Maps an engine's memory to look at it.
std::unique_ptr<Exporter> open_engine(const Manifest& manifest) {
  require_reachable(manifest);
  use_gpu_of(manifest);
  return std::make_unique<Exporter>(manifest, Access::kRead);
}

/// What an engine serves while it is compared.
class ServedParameters final : public KeptParameters {
 public:
  /// Throws IoError, InputError when it serves no version.
  explicit ServedParameters(const Manifest& manifest)
      : exporter_(open_engine(manifest)), published_(exporter_->manifest()), served_(exporter_->look()) {
    if (!exporter_->manifest().expert_table.empty()) {
      table_.emplace(exporter_->manifest());
      experts_ = table_->read();
    }
    switch (served_.state) {
      case WEIGHTCAST_SERVING:
        return;
      case WEIGHTCAST_NONE:
      case WEIGHTCAST_INVALID:
        throw InputError(fmt::format("{}: {}: {}; give it a version with sync", manifest.path,
                                     exporter_->name(), in_words(served_)));
      default:
        throw IoError(fmt::format("{}: {} is in an update ({}); wait for its end", manifest.path,
                                  exporter_->name(), in_words(served_)));
    }
  }

  std::int64_t version() const { return served_.version; }

  /// Where its experts sit, if it says so.
  const std::optional<ExpertMap>& experts() const { return experts_; }

  /// Throws IoError unless it has served that version, of that update, all the time.
  void require_served_on() const {
    exporter_->require_whole();
    if (table_ && key_of(table_->read()) != key_of(*experts_)) {
      throw IoError(
          fmt::format("{}: {} has moved its experts meanwhile; run verify again", name(), exporter_->name()));
    }
    const BlockState now = exporter_->look();
    if (!exporter_->lives()) {
      throw IoError(fmt::format("{}: {} has died meanwhile; start it again", name(), exporter_->name()));
    }
    if (now.state == served_.state && now.update == served_.update && now.version == served_.version) return;
    throw IoError(fmt::format("{}: {} was written meanwhile ({}); run verify again", name(),
                              exporter_->name(), in_words(now)));
  }

  const std::string& name() const override { return exporter_->manifest().path; }

  /// Of an engine that has the model's own tensors: finds them as an update does. Throws InputError.
  void find_tensors(const Family& family) {
    for (const GivenParameter& tensor : canonical_parameters(exporter_->manifest(), family)) {
      tensors_.emplace(tensor.name, Place{tensor.allocation, tensor.offset});
    }
  }

  /// Whether it came through the window: the engine has made something of it that is not published.
  bool is_loaders(const Parameter& parameter) const {
    return place_of(parameter).segment == exporter_->manifest().window();
  }

  void require(const Parameter& parameter) const override { static_cast<void>(place_of(parameter)); }

  void read(const Parameter& parameter, const Box& box, std::span<std::byte> to) const override {
    const Place place = place_of(parameter);
    const Memory& segment = *exporter_->segments()[place.segment];
    const std::int64_t element = dtype_bytes(parameter.dtype);
    const std::int64_t pitch = parameter.shape.cols() * element;
    // Whole rows lie one behind the other.
    const std::int64_t runs = box.cols == parameter.shape.cols() ? 1 : box.rows;
    const std::size_t bytes = to.size() / static_cast<std::size_t>(std::max<std::int64_t>(runs, 1));
    for (std::int64_t run = 0; run < runs; ++run) {
      const std::int64_t from = place.offset + (box.row + run) * pitch + box.col * element;
      segment.read(from, to.subspan(static_cast<std::size_t>(run) * bytes, bytes));
    }
  }

 private:
  struct Place {
    std::size_t segment = 0;
    std::int64_t offset = 0;
  };

  Place place_of(const Parameter& parameter) const {
    if (const auto found = tensors_.find(parameter.name); found != tensors_.end()) return found->second;
    const LiveEntry& entry = published_.parameter(parameter);
    return {entry.segment, entry.offset};
  }

  std::unique_ptr<Exporter> exporter_;
  PublishedTensors published_;
  BlockState served_;
  std::optional<ExpertTable> table_;
  std::optional<ExpertMap> experts_;
  std::map<std::string, Place, std::less<>> tensors_;  ///< the model's own, by name
};

/// The engines of this host, and the names of the others'.
struct Engines {
  std::vector<std::unique_ptr<ServedParameters>> here;
  std::vector<std::int64_t> ranks;  ///< of those
  std::vector<std::string> elsewhere;
};

Engines open_engines(const std::string& directory, const EngineLayout& layout) {
  const std::vector<Manifest> manifests = read_manifests(directory, Role::kEngine);
  if (manifests.empty()) {
    throw IoError(
        directory +
        ": has no manifest of an engine (engine-<n>.json); wait until engines have published there");
  }
  if (static_cast<std::int64_t>(manifests.size()) != layout.ranks()) {
    throw InputError(
        fmt::format("{}: has {} engines, but {} has {}; let --inference or --alloc say what runs", directory,
                    manifests.size(), layout.option, layout.ranks()));
  }
  Engines engines;
  for (const Manifest& manifest : manifests) {
    require_published_layout(manifest, layout);
    if (reach_of(manifest) == Reach::kOtherHost) {
      engines.elsewhere.push_back(fmt::format("engine {} on {}", manifest.rank, manifest.host));
      continue;
    }
    engines.here.push_back(std::make_unique<ServedParameters>(manifest));
    engines.ranks.push_back(manifest.rank);
  }
  return engines;
}

std::int64_t common_version(const Engines& engines) {
  const std::int64_t version = engines.here.front()->version();
  for (const auto& engine : engines.here) {
    if (engine->version() == version) continue;
    throw InputError(fmt::format("{} serves version {}, {} version {}; run the update again",
                                 engines.here.front()->name(), version, engine->name(), engine->version()));
  }
  return version;
}

/// The map that all of them have; nothing where none says it. Throws InputError where they have different
/// ones.
std::optional<ExpertMap> common_experts(const Engines& engines, std::int64_t ep) {
  std::optional<ExpertMap> map = engines.here.front()->experts();
  for (const auto& engine : engines.here) {
    const std::optional<ExpertMap>& own = engine->experts();
    if (own.has_value() == map.has_value() && (!map || key_of(*own) == key_of(*map))) continue;
    throw InputError(fmt::format("{} has another expert map than {}; run verify when all ranks have one",
                                 engine->name(), engines.here.front()->name()));
  }
  if (map) map->ep = ep;
  return map;
}

void refuse_elsewhere(const std::string& directory, const Engines& engines) {
  if (engines.elsewhere.empty()) return;
  throw IoError(fmt::format("live:{}: not compared: {}; run verify there", directory,
                            fmt::join(engines.elsewhere, ", ")));
}

/// Bytes of parameters that were compared, and of those that cannot be: those that went through a window.
struct Compared {
  std::int64_t bytes = 0;
  std::int64_t loader_bytes = 0;
  std::int64_t unwritten_bytes = 0;  ///< of those in place
};

/// Compares what lies in place. Throws InputError, IoError; UsageError for an engine that has nothing in
/// place.
Compared compare(const Engines& engines, const EngineLayout& layout, ReferenceWeights& source,
                 Differences& differences) {
  Compared compared;
  for (std::size_t i = 0; i < engines.here.size(); ++i) {
    ServedParameters& engine = *engines.here[i];
    if (layout.canonical()) engine.find_tensors(source.family());
    std::vector<Parameter> parameters =
        source.family().parameters(layout, engine_rank(layout, engines.ranks[i]));
    const auto loaders = std::stable_partition(parameters.begin(), parameters.end(),
                                               [&](const auto& p) { return !engine.is_loaders(p); });
    if (loaders == parameters.begin() && !parameters.empty()) {
      throw UsageError(engine.name() +
                       ": its own loader takes all tensors out of a window, and what it made of them is not "
                       "published; ask the engine for the digests of its parameters");
    }
    for (auto loader = loaders; loader != parameters.end(); ++loader)
      compared.loader_bytes += loader->bytes();
    parameters.erase(loaders, parameters.end());
    compared.unwritten_bytes += unwritten_bytes(parameters);
    compared.bytes +=
        ParameterVerifier(source.family().catalog(), engine, source.planes(), differences).verify(parameters);
  }
  return compared;
}

}  // namespace

void verify_live(const std::string& directory, const Options& options, OutputFile* json) {
  const std::shared_ptr<const LandingMap> landing = load_landing(options);
  const std::optional<ExpertMap> expert_map = load_expert_map(options);
  Topology topology = topology_of(options, landing.get());
  const EngineLayout& layout = topology.engine;
  const Engines engines = open_engines(directory, layout);
  if (engines.here.empty()) refuse_elsewhere(directory, engines);
  const std::int64_t version = common_version(engines);
  if (options.has_weight_version && options.weight_version != version) {
    throw VerifyError(
        fmt::format("live:{}: version {} is served, not {}; the engines are stale: run the update", directory,
                    version, options.weight_version));
  }
  ReferenceWeights source(options, landing, topology.trainer_layout, layout.quantizer, "live:" + directory);
  const std::optional<ExpertMap> published = common_experts(engines, layout.ep);
  place_experts(options, published ? published : expert_map, source.model(), topology.engine);
  Differences differences;
  const auto [bytes, loader_bytes, unwritten] = compare(engines, layout, source, differences);
  // What an update has just written is no fault.
  for (const auto& engine : engines.here) engine->require_served_on();
  source.require_unchanged();
  differences.require_none(source.family().catalog());
  print_line(fmt::format("live:{}: {} of {} engines serve version {} and hold {}{} exactly, {} compared{}",
                         directory, engines.here.size(), layout.ranks(), version, options.sources.front(),
                         layout.quantizer ? " quantised to " + quantizer_name(*layout.quantizer) : "",
                         format_bytes(bytes), compared_text(source.family())));
  if (loader_bytes > 0) {
    print_line(fmt::format(
        "live:{}: {} went through the engines' own loaders, and what these made of it is not compared",
        directory, format_bytes(loader_bytes)));
  }
  if (unwritten > 0) print_line(fmt::format("live:{}: {}", directory, unwritten_text(unwritten)));
  refuse_elsewhere(directory, engines);
  if (json != nullptr) {
    json->write(json_report({{"weightcast", "verify"},
                             {"status", "done"},
                             {"weight_version", version},
                             {"engines", engines.here.size()},
                             {"bytes", bytes},
                             {"loader_bytes", loader_bytes},
                             {"unwritten_bytes", unwritten},
                             {"partial", choice_json_of(source.family())},
                             {"error", nullptr}}));
  }
}

}  // namespace weightcast
