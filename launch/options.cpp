#include "launch/options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <cctype>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <map>
#include <set>
#include <sstream>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/units.hpp"
#include "launch/options_text.hpp"
#include "launch/version.hpp"
#include "model/layer_counts.hpp"
#include "plan/plan.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

namespace po = boost::program_options;

struct CommandInfo {
  std::string_view name;
  std::string_view usage;
  std::string_view summary;
  bool launched;
};

constexpr std::array<CommandInfo, 7> kCommands{{
    {"sync",
     "mpirun -n N weightcast sync --source PATH … --inference LAYOUT | --alloc ALLOC [--sink hdf5:DIR]",
     "send weights from checkpoints to inference ranks, one update a source", true},
    {"plan", "weightcast plan --model CONFIG_JSON --inference LAYOUT | --alloc ALLOC",
     "print what an update would do: routes, buckets, bytes, memory", false},
    {"bench", "mpirun -n N weightcast bench --model CONFIG_JSON --inference LAYOUT",
     "repeat updates of synthetic weights beside the wire's own rate; --layouts: unpack alone", true},
    {"inspect", "weightcast inspect PATH", "list a checkpoint's or shard file's tensors", false},
    {"verify", "weightcast verify DIR --source PATH [--trainer-alloc ALLOC]",
     "compare shard files with a checkpoint", false},
    {"synth", "weightcast synth --model CONFIG_JSON --output PATH",
     "write a checkpoint of deterministic values", false},
    {"convert", "weightcast convert --source PATH --output PATH [--to megatron|hf --trainer-alloc ALLOC]",
     "safetensors to HDF5 and back, checkpoints to trainers' shards and back", false},
}};

enum CommandBit : unsigned {
  kSync = 1,
  kPlan = 2,
  kBench = 4,
  kInspect = 8,
  kVerify = 16,
  kSynth = 32,
  kConvert = 64,
  kAll = 127,
  kJobs = kSync | kBench,
  kTrainers = kJobs | kPlan | kVerify | kConvert,
};

unsigned bit_of(std::string_view command) {
  for (std::size_t i = 0; i < kCommands.size(); ++i) {
    if (kCommands.at(i).name == command) return 1u << i;
  }
  return 0;
}

/// Every option once, with the commands that take it.
struct OptionInfo {
  const char* name;
  const char* argument;  ///< nullptr: a switch
  const char* help;
  unsigned commands;
};

constexpr std::array<OptionInfo, 47> kOptions{{
    {"source", "PATH",
     "checkpoint: Hugging Face directory, .safetensors or HDF5 file, or a folder of "
     "trainer-<rank>.safetensors "
     "or .h5 (sync: may repeat)",
     kJobs | kVerify | kConvert | kPlan},
    {"model", "CONFIG_JSON",
     "the model's config.json, or its folder (default: beside the source, if there is one)", kAll},
    {"external-data", nullptr,
     "HDF5 sources may have data in other files (external storage, links, virtual datasets) below their "
     "folder",
     kJobs | kPlan | kInspect | kVerify | kConvert},
    {"tied-head", "WHAT",
     "a stored head that differs from the embedding it is tied to: refuse (default), or embedding: the head "
     "is "
     "dropped, as engines do",
     kJobs | kVerify | kConvert | kPlan},
    {"layers", "N", "the same model with N layers", kPlan | kBench | kSynth},
    {"trainers", "N", "the first N ranks are trainers (default 1)", kJobs | kPlan},
    {"colocate", nullptr, "every rank is trainer and inference rank", kJobs | kPlan},
    {"inference", "LAYOUT", "tp=2,ep=2,pp=1,replicas=1 (absent = 1); ep divides tp", kJobs | kPlan},
    {"alloc", "ALLOC",
     "both sides' layouts: 'sglang:d4p1t4+megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)', in place of --inference "
     "and "
     "--trainers (convert and verify take the trainers' side of it)",
     kTrainers},
    {"inference-alloc", "ALLOC", "the inference side alone: sglang:d4p1t4 or vllm:d4p1t4; e cuts experts",
     kJobs | kPlan},
    {"inference-stage-layers", "N,N,...", "layers of each of the engine's stages (default: all equal)",
     kJobs | kPlan},
    {"trainer-alloc", "ALLOC", "the trainers' side alone: 'megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)'",
     kTrainers},
    {"stage-layers", "N,N,...",
     "layers of each of the trainers' stages (default: all equal); with several chunks a stage, chunk 0 of "
     "all "
     "stages first",
     kTrainers},
    {"trainer-order", "NAME", "the trainers' ranks, fastest first: tp-dp-pp (default) or tp-pp-dp",
     kTrainers},
    {"trainer-names", "NUMBERS",
     "layer and expert numbers in the shards: local (each rank counts its own, default) or global",
     kTrainers},
    {"moe-layout", "NAME",
     "where experts' kernels read them: triton (gate first, default), triton-kernels (transposed), cutlass "
     "(up "
     "first), trtllm, trtllm-shuffled, deepgemm, deepgemm-mega or cute-dsl",
     kJobs | kPlan},
    {"quantize", "NAME[:VARIANT]",
     "what linear layers and experts are quantised to: fp8-block[:slime|deepgemm|flashinfer|ue8m0], "
     "fp8-tensor[:sglang|miles], fp8-channel, mxfp8, nvfp4[:te|unit], "
     "mxfp4[:round-up|round-up-ties-down|ocp] (the first variant where none is named), or none: as in the "
     "model (default)",
     kJobs | kPlan},
    {"quantize-at", "SIDE", "source (default): codes travel; destination: values do. Both give the same bits",
     kJobs | kPlan},
    {"activation-scales", "A,B",
     "calibrated scales of what goes into w13 and w2, for the factors that trtllm keeps beside nvfp4 and "
     "fp8-tensor "
     "(default 1,1)",
     kJobs | kPlan},
    {"fan-out", "WHAT", "needed: each rank what it needs; all: everybody everything", kJobs | kPlan},
    {"bucket-size", "BYTES", "most bytes of a bucket (default 256MiB, least 64KiB)", kJobs | kPlan},
    {"buffers", "N", "staging buffers of a rank (default 3)", kJobs | kPlan},
    {"source-split", "HOW",
     "what each trainer holds: catalog (equal runs of what each set of ranks needs), expert or row",
     kBench | kPlan},
    {"transport", "NAME", "mpi (host memory), nccl (GPUs), or auto: nccl when every rank has its own GPU",
     kJobs},
    {"read-threads", "N",
     "threads of a trainer that read files (default: its share of the node's cores, at most 16)", kJobs},
    {"sink", "WHERE", "none, or hdf5:DIR with one file a rank; {version} in DIR becomes the version", kSync},
    {"weight-version", "N",
     "weight version, in sync of the first source (default: the checkpoint's own, else 0); in verify the one "
     "that "
     "the shards must have (default: any)",
     kJobs | kVerify | kSynth | kConvert},
    {"no-verify", nullptr, "do not compare digests after an update", kJobs},
    {"timeout", "SECONDS", "longest start and longest update (default 1800)", kJobs},
    {"progress", "WHEN", "auto, always or never", kJobs},
    {"quiet,q", nullptr, "no notes and no progress on stderr; the report and errors stay", kAll},
    {"json", "FILE", "also write the report as JSON", kJobs | kPlan | kInspect | kVerify},
    {"trace", "FILE", "write a Chrome/Perfetto trace: a lane a rank and stage, a slice a bucket", kJobs},
    {"rank", "R", "show the share of one world rank alone", kPlan},
    {"segments", nullptr, "list every segment in the JSON", kPlan},
    {"layouts", nullptr,
     "one rank: time the unpack alone of a layer's experts in every MoE layout and quantiser, or in those of "
     "--moe-layout and --quantize",
     kBench},
    {"iterations", "N", "updates to time (default 5), with --layouts unpacks (default 10)", kBench},
    {"blocks", "N", "most thread blocks of a GPU kernel (default: a quarter of the multiprocessors)", kBench},
    {"min-achieved", "SHARE", "exit 70 when an unverified update reaches less of the wire's rate", kBench},
    {"no-digests", nullptr, "headers only", kInspect},
    {"output", "PATH", "what to write: a directory of safetensors, or a file ending in .h5",
     kSynth | kConvert},
    {"to", "WHAT",
     "hf: a checkpoint with Hugging Face's names; megatron: trainers' shards; without it names stay as they "
     "are",
     kConvert},
    {"format", "NAME", "of trainers' shards: safetensors (default) or hdf5", kConvert},
    {"max-file-size", "BYTES", "data a safetensors file holds at most (default 5GB)", kSynth | kConvert},
    {"config", "FILE", "read options from FILE (or a pipe), lines of name = value", kAll},
    {"help,h", nullptr, "this text", kAll},
    {"version", nullptr, "versions of the program and its libraries", kAll},
}};

std::string long_name(const OptionInfo& option) {
  const std::string_view name = option.name;
  return std::string(name.substr(0, name.find(',')));
}

/// The options of some commands, as Boost wants them.
po::options_description describe(unsigned commands) {
  po::options_description description("options", 110);
  for (const OptionInfo& option : kOptions) {
    if ((option.commands & commands) == 0) continue;
    if (option.argument == nullptr) {
      description.add_options()(option.name, po::bool_switch(), option.help);
    } else if (long_name(option) == "source") {
      description.add_options()(
          option.name, po::value<std::vector<std::string>>()->value_name(option.argument), option.help);
    } else {
      description.add_options()(option.name, po::value<std::string>()->value_name(option.argument),
                                option.help);
    }
  }
  return description;
}

std::string command_list() {
  std::string text;
  for (const CommandInfo& command : kCommands) {
    text += fmt::format("  {:<8} {}\n", command.name, command.summary);
  }
  return text;
}

void print_help(std::string_view command) {
  if (command.empty()) {
    print_report(fmt::format(
        "weightcast moves freshly trained weights from trainer ranks into the memory of inference ranks.\n\n"
        "usage: weightcast COMMAND [options]\n\n{}\nweightcast COMMAND --help lists a command's options. "
        "They also come "
        "from variables (WEIGHTCAST_BUCKET_SIZE)\nand from --config FILE (bucket-size = 64MiB): command line "
        "over "
        "environment over file. An error is one line\nand an exit code: 64 command line, 65 a file's "
        "content, 66 "
        "wrong weights, 70 internal, 74 the system,\n75 stopped by a signal, 76 timeout.\n",
        command_list()));
    return;
  }
  std::ostringstream options;
  options << describe(bit_of(command));
  for (const CommandInfo& info : kCommands) {
    if (info.name == command) {
      print_report(
          fmt::format("usage: {}\n\n{}: {}\n\n{}", info.usage, info.name, info.summary, options.str()));
    }
  }
}

/// `WEIGHTCAST_BUCKET_SIZE` → `bucket-size`.
std::string option_of_variable(std::string_view variable) {
  std::string name(variable.substr(std::string_view("WEIGHTCAST_").size()));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return c == '_' ? '-' : static_cast<char>(std::tolower(c)); });
  return name;
}

/// An option that the environment or a file may set.
const OptionInfo* find_option(std::string_view name) {
  const auto* found = std::find_if(kOptions.begin(), kOptions.end(),
                                   [&](const OptionInfo& option) { return long_name(option) == name; });
  const bool interactive = name == "help" || name == "version";
  return found == kOptions.end() || interactive ? nullptr : found;
}

bool truth(std::string_view name, const std::string& value) {
  if (value == "1" || value == "true" || value == "on" || value == "yes") return true;
  if (value == "0" || value == "false" || value == "off" || value == "no") return false;
  throw UsageError(fmt::format("{}: '{}' is neither true nor false", name, value));
}

/// Adds one option from the environment or a file; `where` names it in messages.
void add_parsed(po::parsed_options& parsed, const OptionInfo& option, const std::string& value,
                const std::string& where) {
  po::option entry;
  entry.string_key = long_name(option);
  if (option.argument == nullptr) {
    entry.value = {truth(where, value) ? "true" : "false"};
  } else {
    entry.value = {value};
  }
  parsed.options.push_back(std::move(entry));
}

/// Where values that are not from the command line come from, for messages: by option,
/// `WEIGHTCAST_BUCKET_SIZE` or `FILE:3: bucket-size`.
using Origins = std::map<std::string, std::string, std::less<>>;

po::parsed_options parse_environment(const po::options_description& description, unsigned command,
                                     std::vector<std::string>& notes, Origins& origins) {
  po::parsed_options parsed(&description);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view entry = *variable;
    const std::string_view name = entry.substr(0, entry.find('='));
    if (!name.starts_with("WEIGHTCAST_")) continue;
    const std::string option_name = option_of_variable(name);
    // Environment modules set such names for every program.
    if (option_name == "version" || option_name == "help") continue;
    const OptionInfo* option = find_option(option_name);
    if (option == nullptr) {
      notes.push_back(fmt::format("environment: {} is no option and is ignored", name));
    } else if ((option->commands & command) != 0) {
      add_parsed(parsed, *option, std::string(entry.substr(name.size() + 1)), std::string(name));
      origins.emplace(option_name, name);
    }
  }
  return parsed;
}

po::parsed_options parse_file(const po::options_description& description, unsigned command,
                              const std::string& path, Origins& origins) {
  std::string content = options_text(path);
  constexpr std::string_view kMark = "\xef\xbb\xbf";  // that some editors put in front of UTF-8
  if (content.starts_with(kMark)) content.erase(0, kMark.size());
  std::istringstream file(content);
  po::parsed_options parsed(&description);
  std::string line;
  std::set<std::string> given;
  for (int number = 1; std::getline(file, line); ++number) {
    // A comment begins the line or follows a blank: values may contain '#'.
    for (std::size_t at = line.find('#'); at != std::string::npos; at = line.find('#', at + 1)) {
      if (at == 0 || line[at - 1] == ' ' || line[at - 1] == '\t') line.resize(at);
    }
    const auto trim = [](std::string_view text) {
      const std::size_t first = text.find_first_not_of(" \t\r");
      if (first == std::string_view::npos) return std::string();
      return std::string(text.substr(first, text.find_last_not_of(" \t\r") + 1 - first));
    };
    if (trim(line).empty()) continue;
    const std::size_t equals = line.find('=');
    const std::string name = trim(std::string_view(line).substr(0, equals));
    const std::string where = fmt::format("{}:{}: {}", path, number, name);
    const OptionInfo* option = find_option(name);
    if (equals == std::string::npos) throw UsageError(where + ": write name = value");
    if (option == nullptr) throw UsageError(where + ": unknown option");
    if ((option->commands & command) == 0) continue;  // one file may serve several commands
    // As on the command line, all but sources are given once.
    if (!given.insert(name).second && name != "source") {
      throw UsageError(where + ": a second time in this file; leave one of them out");
    }
    add_parsed(parsed, *option, trim(std::string_view(line).substr(equals + 1)), where);
    origins.emplace(name, where);
  }
  return parsed;
}

/// The values after all three places have been read.
class Values {
 public:
  Values(const po::variables_map& map, const Origins& origins) : map_(map), origins_(origins) {}

  /// What to call an option in a message.
  std::string label(const std::string& name) const {
    const auto found = origins_.find(name);
    return found == origins_.end() ? "--" + name : found->second;
  }

  bool has(const char* name) const { return map_.count(name) != 0; }
  bool flag(const char* name) const { return has(name) && map_[name].as<bool>(); }
  std::string text(const char* name, const std::string& fallback) const {
    return has(name) ? map_[name].as<std::string>() : fallback;
  }
  std::int64_t integer(const char* name, std::int64_t fallback, std::int64_t least,
                       std::int64_t most = std::numeric_limits<std::int64_t>::max()) const {
    if (!has(name)) return fallback;
    const std::string value = text(name, "");
    std::size_t used = 0;
    std::int64_t number = 0;
    try {
      number = std::stoll(value, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used == 0 || used != value.size() || number < least || number > most) {
      const std::string upper =
          most == std::numeric_limits<std::int64_t>::max() ? "" : fmt::format(" and at most {}", most);
      throw UsageError(
          fmt::format("{} {}: write an integer of at least {}{}", label(name), value, least, upper));
    }
    return number;
  }
  std::int64_t bytes(const char* name, std::int64_t fallback, std::int64_t least) const {
    if (!has(name)) return fallback;
    std::int64_t value = 0;
    try {
      value = parse_bytes(text(name, ""));
    } catch (const UsageError& error) {
      throw UsageError(fmt::format("{}: {}", label(name), error.what()));
    }
    if (value >= least) return value;
    throw UsageError(
        fmt::format("{} {}: too small; the least is {}", label(name), text(name, ""), format_bytes(least)));
  }
  /// One of `choices`.
  std::string choice(const char* name, const std::vector<std::string>& choices) const {
    std::string value = text(name, choices.front());
    if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
      throw UsageError(fmt::format("{} {}: choose one of {}", label(name), value, fmt::join(choices, ", ")));
    }
    return value;
  }

 private:
  const po::variables_map& map_;
  const Origins& origins_;
};

/// `2,1,1`; empty without the option.
std::vector<std::int64_t> layer_counts(const Values& values, const char* option) {
  if (!values.has(option)) return {};
  return parse_layer_counts(values.label(option), values.text(option, ""));
}

std::optional<Options::Named> named(const Values& values, const char* option) {
  if (!values.has(option)) return std::nullopt;
  return Options::Named{values.label(option), values.text(option, "")};
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
  for (const char* option : {"source", "trainers", "inference", "alloc", "inference-alloc", "trainer-alloc",
                             "source-split", "quantize-at", "min-achieved", "trace"}) {
    if (!values.has(option)) continue;
    throw UsageError(fmt::format(
        "{}: not together with {}, which times what one rank unpacks of synthetic values; leave one out",
        values.label(option), values.label("layouts")));
  }
}

/// Of options that say the same thing in two ways the command line's counts, as of two values of one option.
void drop_overridden(po::variables_map& map, const Origins& origins) {
  using Pair = std::pair<const char*, const char*>;
  for (const auto& [one, other] : {Pair{"alloc", "inference"}, Pair{"alloc", "trainers"},
                                   Pair{"alloc", "inference-alloc"}, Pair{"alloc", "trainer-alloc"},
                                   Pair{"inference-alloc", "inference"}, Pair{"trainer-alloc", "trainers"}}) {
    if (map.count(one) == 0 || map.count(other) == 0) continue;
    const bool one_is_weaker = origins.count(one) != 0;
    const bool other_is_weaker = origins.count(other) != 0;
    if (one_is_weaker != other_is_weaker) map.erase(one_is_weaker ? one : other);
  }
}

/// Throws UsageError for an empty value, as an unset variable of a script leaves it, where it would count as
/// no value at all.
void require_values(const Values& values) {
  for (const char* name : {"model", "quantize", "json", "trace", "output"}) {
    if (!values.has(name) || !values.text(name, "").empty()) continue;
    throw UsageError(fmt::format("{}: is empty; give it a value, or leave it out", values.label(name)));
  }
}

ProgressMode progress_mode(const std::string& name) {
  return name == "always"  ? ProgressMode::kAlways
         : name == "never" ? ProgressMode::kNever
                           : ProgressMode::kAuto;
}

Options take(const Values& values, std::string command, const po::variables_map& map) {
  Options options;
  options.command = std::move(command);
  if (map.count("argument") != 0) options.arguments = map["argument"].as<std::vector<std::string>>();
  const bool takes_argument = options.command == "inspect" || options.command == "verify";
  if (options.arguments.size() > (takes_argument ? 1 : 0)) {
    throw UsageError(fmt::format("'{}' is not expected; weightcast {} --help says what is",
                                 options.arguments.back(), options.command));
  }
  if (map.count("source") != 0) options.sources = map["source"].as<std::vector<std::string>>();
  if (std::find(options.sources.begin(), options.sources.end(), "") != options.sources.end()) {
    throw UsageError(values.label("source") + ": is empty; write a path, or leave it out");
  }
  options.model = values.text("model", "");
  options.external_data = values.flag("external-data");
  options.tied_head = values.choice("tied-head", {"refuse", "embedding"});
  if (values.has("layers")) options.layers = values.integer("layers", 0, 1, 100'000);
  options.trainers = values.integer("trainers", 1, 1, 1 << 20);
  options.colocate = values.flag("colocate");
  if (options.colocate && values.has("trainers")) {
    throw UsageError(fmt::format("{}: not together with {}, which makes every rank a trainer",
                                 values.label("trainers"), values.label("colocate")));
  }
  refuse_together(values, "alloc", {"inference", "trainers", "inference-alloc", "trainer-alloc"});
  refuse_together(values, "inference-alloc", {"inference"});
  refuse_together(values, "trainer-alloc", {"trainers"});
  options.alloc = named(values, "alloc");
  options.inference_alloc = named(values, "inference-alloc");
  options.trainer_alloc = named(values, "trainer-alloc");
  options.trainer_order = values.choice("trainer-order", {"tp-dp-pp", "tp-pp-dp"});
  options.trainer_names = values.choice("trainer-names", {"local", "global"});
  options.stage_layers = layer_counts(values, "stage-layers");
  options.inference_stage_layers = layer_counts(values, "inference-stage-layers");
  for (const char* option : {"stage-layers", "trainer-order", "trainer-names"}) {
    if (!values.has(option) || values.has("alloc") || values.has("trainer-alloc")) continue;
    throw UsageError(
        fmt::format("{}: describes a layout that is not given; add --trainer-alloc", values.label(option)));
  }
  if (values.has("source-split") && (values.has("alloc") || values.has("trainer-alloc"))) {
    throw UsageError(fmt::format("{}: the trainers' layout says what each of them holds; leave one out",
                                 values.label("source-split")));
  }
  options.source_split = values.choice("source-split", {"catalog", "expert", "row"});
  options.inference = values.text("inference", "tp=1");
  options.layouts = values.flag("layouts");
  if (options.layouts) refuse_with_layouts(values);
  options.moe_layout = values.text("moe-layout", options.layouts ? "" : "triton");
  options.quantize = values.text("quantize", "");
  if (options.quantize == "none") options.quantize.clear();
  // What the environment or a file says is for whenever there is something to quantise.
  if (values.has("quantize-at") && options.quantize.empty() &&
      values.label("quantize-at").starts_with("--")) {
    throw UsageError(
        fmt::format("{}: nothing is quantised; add --quantize or leave it out", values.label("quantize-at")));
  }
  options.activation_scales = values.text("activation-scales", "1,1");
  options.quantize_at =
      values.has("quantize-at") ? values.choice("quantize-at", {"source", "destination"}) : "source";
  options.fan_out = values.choice("fan-out", {"needed", "all"});
  options.bucket_size = values.bytes("bucket-size", std::int64_t{256} << 20, Limits::kLeastBucketBytes);
  options.buffers = values.integer("buffers", 3, 1, 1024);
  options.transport = values.choice("transport", {"auto", "mpi", "nccl"});
  options.sink = values.text("sink", "none");
  options.read_threads = values.integer("read-threads", 0, 1, 1024);
  options.has_weight_version = values.has("weight-version");
  // Of several sources each update has one more than the last.
  const auto more_sources = static_cast<std::int64_t>(std::max<std::size_t>(1, options.sources.size()) - 1);
  options.weight_version =
      values.integer("weight-version", 0, 0, std::numeric_limits<std::int64_t>::max() - more_sources);
  options.no_verify = values.flag("no-verify");
  options.timeout = values.integer("timeout", 1800, 1, 100'000'000);
  options.progress = progress_mode(values.choice("progress", {"auto", "always", "never"}));
  options.quiet = values.flag("quiet");
  options.json = values.text("json", "");
  options.trace = values.text("trace", "");
  if (values.has("rank")) options.rank = values.integer("rank", 0, 0);
  options.segments = values.flag("segments");
  options.blocks = values.integer("blocks", 0, 1, 1 << 20);
  options.iterations = values.integer("iterations", options.layouts ? 10 : 5, 1, 1'000'000);
  const std::string min_achieved = values.text("min-achieved", "0");
  char* end = nullptr;
  options.min_achieved = std::strtod(min_achieved.c_str(), &end);
  if (min_achieved.empty() || *end != '\0' || !(options.min_achieved >= 0) ||
      !std::isfinite(options.min_achieved)) {
    throw UsageError(
        fmt::format("{} {}: write a share such as 0.95", values.label("min-achieved"), min_achieved));
  }
  options.no_digests = values.flag("no-digests");
  options.output = values.text("output", "");
  if (values.has("to")) options.to = values.choice("to", {"hf", "megatron"});
  if (values.has("format")) options.format = values.choice("format", {"safetensors", "hdf5"});
  options.max_file_size = values.bytes("max-file-size", 5'000'000'000, 1);
  options.has_max_file_size = values.has("max-file-size");
  require_values(values);
  return options;
}

}  // namespace

bool is_launched(std::string_view command) {
  return std::any_of(kCommands.begin(), kCommands.end(),
                     [&](const CommandInfo& info) { return info.name == command && info.launched; });
}

bool is_plain(std::string_view command) {
  return bit_of(command) != 0 && !is_launched(command);
}

std::uint64_t hash_options(const Options& options) {
  Hasher hasher;
  hasher.add(options.sources.size());
  for (const std::string& source : options.sources) hasher.add(std::string_view(source));
  for (const std::string* text :
       {&options.command, &options.model, &options.inference, &options.moe_layout, &options.quantize,
        &options.quantize_at, &options.activation_scales, &options.fan_out, &options.transport, &options.sink,
        &options.source_split, &options.trace, &options.trainer_order, &options.trainer_names,
        &options.tied_head}) {
    hasher.add(std::string_view(*text));
  }
  for (const auto* text : {&options.alloc, &options.trainer_alloc, &options.inference_alloc}) {
    hasher.add(text->has_value()).add(std::string_view(*text ? (*text)->text : ""));
  }
  hasher.add(options.layers.value_or(0)).add(options.trainers).add(options.colocate).add(options.bucket_size);
  hasher.add(options.buffers).add(options.weight_version).add(options.has_weight_version);
  hasher.add(options.no_verify).add(options.timeout).add(options.iterations).add(options.min_achieved);
  hasher.add(options.external_data).add(options.blocks).add(options.layouts);
  for (const auto* counts : {&options.stage_layers, &options.inference_stage_layers}) {
    hasher.add(counts->size());
    for (const std::int64_t layers : *counts) hasher.add(layers);
  }
  return hasher.digest();
}

std::optional<Options> parse_options(int argc, const char* const* argv, bool speaks,
                                     std::vector<std::string>& notes) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "--help" || command == "-h" || command == "help") {
    if (speaks) print_help("");
    return std::nullopt;
  }
  if (command == "--version") {
    if (speaks) print_report(version_line() + "\n");
    return std::nullopt;
  }
  const unsigned bit = bit_of(command);
  if (bit == 0) {
    std::vector<std::string_view> names(kCommands.size());
    std::transform(kCommands.begin(), kCommands.end(), names.begin(),
                   [](const auto& info) { return info.name; });
    throw UsageError(
        fmt::format("{}; commands are {}; weightcast --help says more",
                    command.empty() ? "no command given" : fmt::format("'{}' is no command", command),
                    fmt::join(names, ", ")));
  }
  po::options_description description = describe(bit);
  description.add_options()("argument", po::value<std::vector<std::string>>(), "");
  po::positional_options_description positional;
  positional.add("argument", -1);
  po::variables_map map;
  Origins origins;
  try {
    using po::command_line_style::allow_guessing;
    const auto parsed = po::command_line_parser(argc - 1, argv + 1)
                            .options(description)
                            .positional(positional)
                            .style(po::command_line_style::unix_style & ~allow_guessing)
                            .run();
    po::store(parsed, map);
    if (map["help"].as<bool>()) {
      if (speaks) print_help(command);
      return std::nullopt;
    }
    if (map["version"].as<bool>()) {
      if (speaks) print_report(version_line() + "\n");
      return std::nullopt;
    }
    const po::variables_map from_command_line = map;
    // Whatever is stored first stays: command line, then environment, then file.
    po::store(parse_environment(description, bit, notes, origins), map);
    if (map.count("config") != 0) {
      po::store(parse_file(description, bit, map["config"].as<std::string>(), origins), map);
    }
    for (const auto& [name, value] : from_command_line) {
      if (!value.defaulted()) origins.erase(name);
    }
    drop_overridden(map, origins);
    po::notify(map);
  } catch (const po::error& error) {
    throw UsageError(fmt::format("{}; weightcast {} --help lists the options", error.what(), command));
  }
  call_options(origins);
  return take(Values(map, origins), command, map);
}

}  // namespace weightcast
