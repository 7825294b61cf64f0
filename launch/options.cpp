#include "launch/options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <variant>

#include "core/error.hpp"
#include "core/text.hpp"
#include "launch/commands.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/options/completion.hpp"
#include "launch/options/help.hpp"
#include "launch/options/sources.hpp"
#include "launch/options/suggestion.hpp"
#include "launch/version.hpp"
#include "plan/plan.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

std::optional<LayoutOptions::Named> named(const Values& values, const char* option) {
  if (!values.has(option)) return std::nullopt;
  return LayoutOptions::Named{values.label(option), values.text(option, "")};
}

/// Throws UsageError when two options that say the same thing in two ways were given.
void refuse_together(const Values& values, const char* option, std::initializer_list<const char*> others) {
  if (!values.has(option)) return;
  for (const char* other : others) {
    if (!values.has(other)) continue;
    throw UsageError(fmt::format("{}: not together with {}, which says the same; leave one out",
                                 values.label(option), values.label(other)));
  }
}

/// Throws UsageError for what has no meaning where one rank unpacks its own values.
void refuse_with_layouts(const Values& values) {
  for (const char* option :
       {"source", "landing", "export-map", "include", "exclude", "trainers", "inference", "alloc",
        "inference-alloc", "trainer-alloc", "source-split", "quantize-at", "expert-map", "placement",
        "redundant-experts", "min-achieved", "trace", "picture"}) {
    if (!values.has(option)) continue;
    throw UsageError(fmt::format(
        "{}: not together with {}, which times what one rank unpacks of synthetic values; leave one out",
        values.label(option), values.label("layouts")));
  }
}

/// Throws UsageError for an empty value, as an unset variable of a script leaves it, where it would count as
/// no value at all.
void require_values(const Values& values) {
  for (const char* name : {"model", "landing", "export-map", "expert-map", "quantize", "json", "trace",
                           "picture", "output", "load", "previous", "from"}) {
    if (!values.has(name) || !values.text(name, "").empty()) continue;
    throw UsageError(fmt::format("{}: is empty; give it a value, or leave it out", values.label(name)));
  }
}

/// Throws UsageError for `~` in front of what is written: the shell leaves it as it is behind `=` and `:`,
/// and a folder of that name would be made where the program runs.
void require_no_tilde(const Values& values) {
  for (const char* name : {"sink", "output", "json", "trace", "picture"}) {
    const std::string value = values.text(name, "");
    std::string_view path = value;
    for (const std::string_view kind : {"hdf5:", "safetensors:", "live:"}) {
      if (path.starts_with(kind)) path.remove_prefix(kind.size());
    }
    if (path != "~" && !path.starts_with("~/")) continue;
    throw UsageError(
        fmt::format("{} {}: nobody replaces ~ there; write $HOME, or ./~ for a folder of that name",
                    values.label(name), excerpt(value)));
  }
}

/// Throws UsageError for what shard files say themselves. What the environment or a file says is for other
/// commands.
void refuse_layout_of_shards(const Values& values) {
  for (const char* option : {"inference", "engine", "inference-alloc", "inference-stage-layers", "moe-layout",
                             "quantize", "activation-scales"}) {
    if (!values.typed(option)) continue;
    throw UsageError(fmt::format("{}: is for verify live:DIR; shard files say their layout themselves",
                                 values.label(option)));
  }
}

/// Throws UsageError for what a rebalance of shard files or of running engines does not ask for.
void refuse_measuring(const Values& values, bool shards) {
  constexpr std::array kOfMeasuring{"layers", "iterations"};
  constexpr std::array kOfLayouts{"inference",  "engine",   "inference-alloc",  "inference-stage-layers",
                                  "moe-layout", "quantize", "activation-scales"};
  for (const char* option : kOfMeasuring) {
    if (!values.typed(option)) continue;
    throw UsageError(fmt::format("{}: is for --sink none; experts of others are moved once, in all layers",
                                 values.label(option)));
  }
  for (const char* option : kOfLayouts) {
    if (!shards || !values.typed(option)) continue;
    throw UsageError(
        fmt::format("{}: is for --sink none and live:DIR; shard files say their layout themselves",
                    values.label(option)));
  }
}

ProgressMode progress_mode(const std::string& name) {
  return name == "always"  ? ProgressMode::kAlways
         : name == "never" ? ProgressMode::kNever
                           : ProgressMode::kAuto;
}

/// Throws UsageError for what a landing map says itself.
void refuse_with_landing(const Values& values) {
  if (!values.has("landing")) return;
  for (const char* option : {"layers", "inference-stage-layers", "mtp", "target", "expert-map", "placement",
                             "redundant-experts", "trainer-alloc", "alloc"}) {
    if (!values.has(option)) continue;
    const bool alloc = std::string_view(option).ends_with("alloc");
    throw UsageError(
        fmt::format("{}: not together with {}; {}", values.label(option), values.label("landing"),
                    alloc ? "whose trainers have Hugging Face's names: say the engine's side alone "
                            "with --inference-alloc"
                          : "which says it itself: leave one out"));
  }
}

void take(const Values& values, SourceOptions& options) {
  options.sources = values.texts("source");
  if (std::find(options.sources.begin(), options.sources.end(), "") != options.sources.end()) {
    throw UsageError(values.label("source") + ": is empty; write a path, or leave it out");
  }
  options.model = values.text("model", "");
  options.landing = values.text("landing", "");
  options.export_map = values.text("export-map", "");
  options.external_data = values.flag("external-data");
  options.tied_head = values.choice("tied-head", {"refuse", "embedding"});
  options.include = values.texts("include");
  options.exclude = values.texts("exclude");
  options.mtp = values.choice("mtp", {"exclude", "include"});
  options.target = values.choice("target", {"model", "draft"});
  if (options.target == "draft" && values.typed("mtp")) {
    throw UsageError(
        fmt::format("{}: not together with {} draft, which is of draft layers alone; leave one out",
                    values.label("mtp"), values.label("target")));
  }
  if (values.has("layers")) options.layers = values.integer("layers", 0, 1, 100'000);
  options.read_threads = values.integer("read-threads", 0, 1, 1024);
}

void require_meaning_of_layouts(const Values& values) {
  refuse_with_landing(values);
  if (values.flag("colocate") && values.has("trainers")) {
    throw UsageError(fmt::format("{}: not together with {}, which makes every rank a trainer",
                                 values.label("trainers"), values.label("colocate")));
  }
  refuse_together(values, "alloc", {"inference", "trainers", "inference-alloc", "trainer-alloc"});
  refuse_together(values, "export-map", {"alloc", "trainer-alloc", "source-split"});
  refuse_together(values, "expert-map", {"placement", "redundant-experts"});
  refuse_together(values, "inference-alloc", {"inference"});
  refuse_together(values, "trainer-alloc", {"trainers"});
  const bool trainers_given = values.has("alloc") || values.has("trainer-alloc");
  for (const char* option : {"stage-layers", "trainer-order", "trainer-names", "trainer-linear-attention"}) {
    if (!values.has(option) || trainers_given) continue;
    throw UsageError(
        fmt::format("{}: describes a layout that is not given; add --trainer-alloc", values.label(option)));
  }
  if (values.has("source-split") && trainers_given) {
    throw UsageError(fmt::format("{}: the trainers' layout says what each of them holds; leave one out",
                                 values.label("source-split")));
  }
  // What the environment or a file says is for whenever there is something to quantise.
  const std::string quantize = values.text("quantize", "none");
  if (values.typed("quantize-at") && quantize == "none") {
    throw UsageError(
        fmt::format("{}: nothing is quantised; add --quantize or leave it out", values.label("quantize-at")));
  }
}

void take(const Values& values, LayoutOptions& options) {
  require_meaning_of_layouts(values);
  options.trainers = values.integer("trainers", 1, 1, 1 << 20);
  options.colocate = values.flag("colocate");
  options.alloc = named(values, "alloc");
  options.inference_alloc = named(values, "inference-alloc");
  options.trainer_alloc = named(values, "trainer-alloc");
  options.trainer_order = values.choice("trainer-order", {"tp-dp-pp", "tp-pp-dp"});
  options.trainer_names = values.choice("trainer-names", {"local", "global"});
  options.trainer_linear_attention = values.choice("trainer-linear-attention", {"cut", "cut-plain", "whole"});
  options.stage_layers = values.layer_counts("stage-layers");
  options.inference_stage_layers = values.layer_counts("inference-stage-layers");
  options.source_split = values.choice("source-split", {"catalog", "expert", "row"});
  if (values.has("inference")) options.inference = values.text("inference", "");
  if (values.has("engine")) options.engine = values.choice("engine", {"sglang", "vllm"});
  options.moe_layout = values.text("moe-layout", values.flag("layouts") ? "" : "triton");
  options.expert_map = values.text("expert-map", "");
  options.placement = values.choice("placement", {"contiguous", "trivial", "round-robin"});
  options.redundant_experts = values.integer("redundant-experts", 0, 0, 1 << 16);
  options.quantize = values.text("quantize", "");
  if (options.quantize == "none") options.quantize.clear();
  options.activation_scales = values.text("activation-scales", "1,1");
  options.quantize_at = values.choice("quantize-at", {"source", "destination"});
}

void take(const Values& values, std::size_t sources, UpdateOptions& options) {
  options.fan_out = values.choice("fan-out", {"needed", "all"});
  options.bucket_size = values.bytes("bucket-size", std::int64_t{256} << 20, Limits::kLeastBucketBytes);
  options.buffers = values.integer("buffers", 3, 1, 1024);
  options.transport = values.choice("transport", {"auto", "mpi", "nccl"});
  options.direct = values.choice("direct", {"never", "auto", "always"});
  options.sink = values.text("sink", "none");
  options.has_weight_version = values.has("weight-version");
  // Of several sources each update has one more than the last.
  const auto more_sources = static_cast<std::int64_t>(std::max<std::size_t>(1, sources) - 1);
  options.weight_version =
      values.integer("weight-version", 0, 0, std::numeric_limits<std::int64_t>::max() - more_sources);
  options.no_verify = values.flag("no-verify");
  options.allow_older = values.flag("allow-older");
  options.on_offer = values.flag("on-offer");
  options.release_staging = values.flag("release-staging");
  options.no_queue = values.flag("no-queue");
  options.wait = values.integer("wait", 0, 0, 100'000'000);
  options.dry_run = values.flag("dry-run");
  options.timeout = values.integer("timeout", 1800, 1, 100'000'000);
}

/// Throws UsageError when two reports would be mixed on stdout.
void require_one_on_stdout(const Values& values) {
  const char* first = nullptr;
  for (const char* name : {"json", "trace", "picture"}) {
    if (values.text(name, "") != "-") continue;
    if (first != nullptr) {
      throw UsageError(fmt::format("{} -: not together with {} -; let one of them be a file",
                                   values.label(name), values.label(first)));
    }
    first = name;
  }
}

void take(const Values& values, ReportOptions& options) {
  require_one_on_stdout(values);
  options.progress = progress_mode(values.choice("progress", {"auto", "always", "never"}));
  options.quiet = values.flag("quiet");
  options.json = values.text("json", "");
  options.trace = values.text("trace", "");
  options.picture = values.text("picture", "");
  if (values.has("rank")) options.rank = values.integer("rank", 0, 0);
  options.segments = values.flag("segments");
  options.all = values.flag("all");
  if (values.has("link-gbps")) options.link_gbps = values.positive("link-gbps");
  options.no_digests = values.flag("no-digests");
}

void take(const Values& values, BenchOptions& options) {
  options.layouts = values.flag("layouts");
  if (options.layouts) refuse_with_layouts(values);
  options.blocks = values.integer("blocks", 0, 1, 1 << 20);
  options.iterations = values.integer("iterations", options.layouts ? 10 : 5, 1, 1'000'000);
  options.min_achieved = values.share("min-achieved");
}

void take(const Values& values, BalanceOptions& options) {
  const auto count = [&](const char* name) {
    return values.integer(name, 1, 1, std::numeric_limits<std::int32_t>::max());
  };
  options.load = values.text("load", "");
  options.previous = values.text("previous", "");
  if (values.has("max-moves")) options.max_moves = values.integer("max-moves", 0, 0);
  if (values.has("slots")) options.slots = count("slots");
  if (values.has("ranks")) options.ranks = count("ranks");
  options.groups = count("groups");
  options.nodes = count("nodes");
}

void take(const Values& values, RebalanceOptions& options) {
  options.from_map = values.text("from", "");
  options.to_map = values.text("to", "");
}

void take(const Values& values, std::string_view command, OutputOptions& options) {
  options.output = values.text("output", "");
  if (options.output == "-" && (command == "convert" || command == "synth")) {
    throw UsageError(
        values.label("output") +
        " -: a checkpoint does not go to stdout; name a folder, ./- if it is called so, or a file "
        "ending in .h5");
  }
  if (values.has("to") && command != "rebalance") options.to = values.choice("to", {"hf", "megatron"});
  if (values.has("format")) {
    options.format = command == "hosts" ? values.choice("format", {"rankfile", "hostlist"})
                                        : values.choice("format", {"safetensors", "hdf5"});
  }
  options.max_file_size = values.bytes("max-file-size", 5'000'000'000, 1);
  options.has_max_file_size = values.has("max-file-size");
  options.clean = values.flag("clean");
}

Options take_all(const Values& values, std::string command) {
  Options options;
  options.command = std::move(command);
  options.arguments = values.texts("argument");
  const bool takes_argument = options.command == "inspect" || options.command == "verify" ||
                              options.command == "trigger" || options.command == "hosts";
  if (options.arguments.size() > (takes_argument ? 1 : 0)) {
    throw UsageError(fmt::format("'{}' is not expected; weightcast {} --help says what is",
                                 options.arguments.back(), options.command));
  }
  const bool shards =
      options.command == "verify" && !options.arguments.empty() && !live_directory(options.arguments.front());
  if (shards) refuse_layout_of_shards(values);
  take(values, static_cast<SourceOptions&>(options));
  take(values, static_cast<LayoutOptions&>(options));
  take(values, options.sources.size(), static_cast<UpdateOptions&>(options));
  const bool from_trainers = !options.sources.empty() && live_directory(options.sources.front());
  // What the environment or a file names is for the commands that write there.
  if (options.command == "bench" && !values.typed("sink") &&
      !(from_trainers && live_directory(options.sink))) {
    options.sink = "none";
  }
  take(values, static_cast<ReportOptions&>(options));
  take(values, static_cast<BenchOptions&>(options));
  take(values, static_cast<BalanceOptions&>(options));
  if (options.command == "rebalance") {
    const std::string sink = values.text("sink", "none");
    if (sink != "none") refuse_measuring(values, !live_directory(sink));
    take(values, static_cast<RebalanceOptions&>(options));
  }
  take(values, options.command, static_cast<OutputOptions&>(options));
  require_values(values);
  require_no_tilde(values);
  options.alike = values.alike(options.command);
  return options;
}

[[noreturn]] void refuse_command(const std::string& command) {
  std::vector<std::string_view> names;
  for (const Command& known : commands()) names.push_back(known.name);
  throw UsageError(
      fmt::format("{}{}; commands are {}; weightcast --help says more",
                  command.empty() ? "no command given" : fmt::format("'{}' is no command", command),
                  suggestion(command, names), fmt::join(names, ", ")));
}

}  // namespace

std::optional<Options> parse_options(int argc, const char* const* argv, bool speaks,
                                     std::vector<std::string>& notes) {
  const std::string command = argc > 1 ? argv[1] : "";
  const auto answer = [&](Asked asked, std::string_view of) -> std::optional<Options> {
    if (speaks) asked == Asked::kHelp ? print_help(of) : print_report(version_line() + "\n");
    return std::nullopt;
  };
  const std::string word = argc > 2 ? argv[2] : "";
  if (command == "--help" || command == "-h" || command == "help") {
    return answer(Asked::kHelp, command == "help" && find_command(word) != nullptr ? word : "");
  }
  if (command == "--version" || command == "-V" || command == "version") return answer(Asked::kVersion, "");
  if (command == "completion") {
    if (word != "bash")
      throw UsageError("completion is there for one shell: source <(weightcast completion bash)");
    if (speaks) print_report(bash_completion());
    return std::nullopt;
  }
  if (find_command(command) == nullptr) refuse_command(command);
  const std::variant<Values, Asked> read = read_values(argc, argv, notes);
  if (const auto* asked = std::get_if<Asked>(&read)) return answer(*asked, command);
  const Values& values = std::get<Values>(read);
  call_options(values.origins());
  return take_all(values, command);
}

}  // namespace weightcast
