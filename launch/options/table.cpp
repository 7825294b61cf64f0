#include "launch/options/table.hpp"

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <vector>

#include "launch/commands.hpp"

namespace weightcast {

namespace {

namespace po = boost::program_options;

constexpr auto kOptions = std::to_array<OptionInfo>({
    {"source", "PATH",
     "checkpoint: Hugging Face directory, .safetensors or HDF5 file, or a folder of "
     "trainer-<rank>.safetensors or .h5; several times for several updates (WEIGHTCAST_SOURCE: one a line); "
     "or live:DIR: trainers that have published their memory there",
     kSync, Ranks::kAlike, true},
    {"source", "PATH",
     "checkpoint: Hugging Face directory, .safetensors or HDF5 file, or a folder of "
     "trainer-<rank>.safetensors or .h5, or live:DIR: trainers that have published their memory there",
     kServe | kBench | kPlan, Ranks::kAlike, true},
    {"source", "PATH",
     "checkpoint: Hugging Face directory, .safetensors or HDF5 file, or a folder of "
     "trainer-<rank>.safetensors or .h5",
     kVerify | kConvert, Ranks::kAlike, true},
    {"model", "CONFIG_JSON",
     "the model's config.json, or its folder (default: beside the source, if there is one)",
     kAll & ~kTrigger},
    {"landing", "FILE",
     "landing map that weightcast learn has made of the engine: where each tensor lands on each "
     "rank, in "
     "place "
     "of "
     "what is known of the model's family; the layout is the map's",
     kJobs | kPlan | kVerify},
    {"export-map", "FILE",
     "export map of trainers of live:DIR that have published their own tensors: which box of them each "
     "tensor of the model is (default: the one that they have published with them)",
     kJobs | kPlan},
    {"external-data", nullptr,
     "HDF5 sources may have data in other files (external storage, links, virtual datasets) below their "
     "folder",
     kJobs | kPlan | kInspect | kVerify | kConvert},
    {"tied-head", "WHAT",
     "a stored head that differs from the embedding it is tied to: refuse (default), or embedding: the head "
     "is "
     "dropped, as engines do",
     kJobs | kVerify | kConvert | kPlan},
    {"include", "PATTERN",
     "send only the tensors of the model whose names the pattern fits (*.experts.*; * is anything, ? one "
     "character, [0-9] one of these), once more for each other pattern; the rest stays as engines have it",
     kJobs | kPlan | kVerify, Ranks::kAlike, true},
    {"exclude", "PATTERN",
     "send none of those that it fits (model.visual.*), also of what is included; once more for each other "
     "pattern",
     kJobs | kPlan | kVerify, Ranks::kAlike, true},
    {"mtp", "WHAT",
     "layers behind the last one that only drafts of engines use (MTP, nextn): exclude (default), or "
     "include: "
     "they are sent with the model",
     kJobs | kPlan | kVerify | kSynth | kRebalance},
    {"target", "WHAT",
     "model (default), or draft: only the engine's draft model, of these layers and the embedding and head "
     "that "
     "it repeats",
     kJobs | kPlan | kVerify | kSynth | kRebalance},
    {"layers", "N", "the same model with N layers", kPlan | kBench | kSynth | kRebalance},
    {"trainers", "N", "the first N ranks are trainers (default 1)", kJobs | kPlan | kHosts},
    {"colocate", nullptr, "every rank is trainer and inference rank", kJobs | kPlan | kHosts},
    {"inference", "LAYOUT",
     "tp=2,ep=2,pp=1,replicas=1 (absent = 1); ep divides tp; attn_tp=1,attn_dp=8,ep=8 with data-parallel "
     "attention",
     kJobs | kPlan | kVerify | kRebalance},
    {"engine", "NAME", "whose names parameters have: sglang (default) or vllm; an allocation says it itself",
     kJobs | kPlan | kVerify | kRebalance},
    {"alloc", "ALLOC",
     "both sides' layouts: 'sglang:d4p1t4+megatron:(attn:d1p4t2c2|ffn:d1p4t2e2)', in place of --inference "
     "and "
     "--trainers (convert and verify take the trainers' side of it)",
     kTrainers},
    {"inference-alloc", "ALLOC",
     "the inference side alone: sglang:d4p1t4 or vllm:d4p1t4 (e cuts experts), 'vllm:(attn:d8t1|ffn:e8)' "
     "with data-parallel attention, or hf: whole tensors as a "
     "Hugging Face module has them, hf:d4 of four replicas",
     kJobs | kPlan | kVerify | kRebalance},
    {"inference-stage-layers", "N,N,...", "layers of each of the engine's stages (default: all equal)",
     kJobs | kPlan | kVerify | kRebalance},
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
    {"trainer-linear-attention", "FORM",
     "linear attention at trainers: cut between ranks, with the norm behind it less one, as Megatron-Core "
     "has "
     "it (default), cut-plain, with that norm as the model has it, or whole on each",
     kTrainers},
    {"moe-layout", "NAME",
     "where experts' kernels read them: triton (gate first, default), triton-kernels (transposed), cutlass "
     "(up "
     "first), trtllm, trtllm-shuffled, deepgemm, deepgemm-mega, cute-dsl or vllm-cpu",
     kJobs | kPlan | kVerify | kRebalance},
    {"expert-map", "FILE",
     "expert map, as weightcast balance writes it: which experts sit in which slots of the engine's ranks",
     kJobs | kPlan | kVerify},
    {"placement", "NAME",
     "where experts sit before any rebalance: contiguous (slot p holds expert p mod experts, default; "
     "SGLang's "
     "word is trivial, vLLM's linear) or round-robin (rank r of ep holds r, r + ep, …)",
     kJobs | kPlan | kVerify},
    {"redundant-experts", "N",
     "expert slots of a layer beyond one for each expert (default 0); they hold the first experts again",
     kJobs | kPlan | kVerify},
    {"quantize", "NAME[:VARIANT]",
     "what linear layers and experts are quantised to: fp8-block[:slime|deepgemm|flashinfer|ue8m0], "
     "fp8-tensor[:sglang|miles], fp8-channel, mxfp8, nvfp4[:te|unit], "
     "mxfp4[:round-up|round-up-ties-down|ocp] (the first variant where none is named), or none: as in the "
     "model (default)",
     kJobs | kPlan | kVerify | kRebalance},
    {"quantize-at", "SIDE", "source (default): codes travel; destination: values do. Both give the same bits",
     kJobs | kPlan},
    {"activation-scales", "A,B",
     "calibrated scales of what goes into w13 and w2, for the factors that trtllm keeps beside nvfp4 and "
     "fp8-tensor "
     "(default 1,1)",
     kJobs | kPlan | kVerify | kRebalance},
    {"fan-out", "WHAT", "needed: each rank what it needs; all: everybody everything", kJobs | kPlan},
    {"bucket-size", "BYTES", "most bytes of a bucket (default 256MiB, least 64KiB)",
     kJobs | kPlan | kRebalance},
    {"buffers", "N", "staging buffers of a rank (default 3)", kJobs | kPlan | kRebalance},
    {"source-split", "HOW",
     "what each trainer holds: catalog (equal runs of what each set of ranks needs), expert or row",
     kBench | kPlan},
    {"transport", "NAME", "mpi (host memory), nccl (GPUs), or auto: nccl when every rank has its own GPU",
     kJobs | kRebalance},
    {"direct", "WHEN",
     "on GPUs of one host, trainers write into engines' memory themselves: never (default), auto (where they "
     "reach it and it pays) or always",
     kJobs},
    {"read-threads", "N",
     "threads of a trainer that read files (default: its share of the node's cores, at most 16)", kJobs,
     Ranks::kEachItsOwn},
    {"sink", "WHERE",
     "none; hdf5:DIR or safetensors:DIR with one file a rank, {version} in DIR becomes the version; or "
     "live:DIR: "
     "the memory of engines that have published it there (plan: compares what they have published with the "
     "layout)",
     kUpdates | kBench | kPlan},
    {"sink", "WHERE",
     "hdf5:DIR or safetensors:DIR, the shard files whose experts move, each replaced by a new one; live:DIR, "
     "engines that run and have published where their experts sit; or none: "
     "any values in memory, to time what the maps ask for beside the wire",
     kRebalance},
    {"allow-older", nullptr, "engines of live:DIR may be given an older version than they serve",
     kUpdates | kBench},
    {"on-offer", nullptr,
     "update whenever all trainers of live:DIR offer one version, also without a trigger", kServe},
    {"wait", "SECONDS",
     "wait that long until all trainers and engines of live:DIR have published (default 0: 74 unless they "
     "have)",
     kServe},
    {"release-staging", nullptr,
     "give staging buffers back between updates; each update opens them, and the wire, anew", kServe},
    {"dry-run", nullptr,
     "say what the job would do, as plan does, and look at sources, sink and space; changes nothing and "
     "needs "
     "no mpirun",
     kSync},
    {"no-queue", nullptr, "do not wait for the end of another update: 74 instead", kTrigger},
    {"weight-version", "N",
     "weight version, of several sources the first one's (default: the checkpoint's own, else 0)", kSync},
    {"weight-version", "N", "weight version (default: the checkpoint's own, else 0)", kConvert},
    {"weight-version", "N", "weight version, on which the values depend (default 0)", kBench | kSynth},
    {"weight-version", "N", "the one that the shards must have (default: any)", kVerify},
    {"weight-version", "N", "the one that engines are to have afterwards (default: what is offered)",
     kTrigger},
    {"no-verify", nullptr, "do not compare digests after an update", kJobs | kRebalance},
    {"timeout", "SECONDS", "longest start and longest update (default 1800)", kJobs | kRebalance},
    {"timeout", "SECONDS", "longest wait (default 1800)", kTrigger},
    {"progress", "WHEN", "signs of life on stderr: auto (default), always (also with -q) or never",
     kJobs | kPlan | kInspect | kVerify | kSynth | kConvert | kRebalance, Ranks::kEachItsOwn},
    {"quiet,q", nullptr, "no notes and no progress on stderr; the report and errors stay", kAll,
     Ranks::kEachItsOwn},
    {"json", "FILE", "also write the report as JSON; - is stdout, and what else is said goes to stderr",
     kJobs | kPlan | kInspect | kVerify | kRebalance, Ranks::kEachItsOwn},
    {"trace", "FILE", "write a Chrome/Perfetto trace: a lane a rank and stage, a slice a bucket",
     kSync | kBench},
    {"picture", "FILE",
     "draw FILE.svg: of plan who sends how much to whom, and the links by step; of bench the times beside "
     "the "
     "wire's",
     kPlan | kBench, Ranks::kEachItsOwn},
    {"rank", "R", "show the plan of one world rank alone", kPlan},
    {"all", nullptr, "list every rank and every route, not the five with most alone", kPlan},
    {"link-gbps", "N", "Gbit/s that a rank's link carries each way: says how long an update takes at least",
     kPlan},
    {"segments", nullptr, "list every segment in the JSON", kPlan},
    {"layouts", nullptr,
     "one rank: time the unpack alone of a layer's experts in every MoE layout and quantiser, or in those of "
     "--moe-layout and --quantize",
     kBench},
    {"iterations", "N", "updates to time (default 5), with --layouts unpacks (default 10)", kBench},
    {"iterations", "N", "with --sink none: how often experts move, timed (default 5)", kRebalance},
    {"blocks", "N", "most thread blocks of a GPU kernel beside transfers (default: what keeps ahead of them)",
     kBench},
    {"min-achieved", "SHARE", "exit 70 when an unverified update reaches less of the wire's rate", kBench},
    {"no-digests", nullptr, "headers only", kInspect},
    {"output", "PATH", "what to write: a directory of safetensors, or a file ending in .h5",
     kSynth | kConvert},
    {"output", "PATH", "the file of --format (default: stdout)", kHosts},
    {"load", "FILE",
     "JSON: for each layer a list of its experts' loads, [layers][experts], in tokens or any unit", kBalance},
    {"slots", "S", "expert slots of a layer on all ranks together, at least one for each expert", kBalance},
    {"ranks", "R", "ranks that the slots are on, as many on each", kBalance},
    {"nodes", "N", "nodes that the ranks are on, as many on each (default 1)", kBalance},
    {"groups", "G",
     "groups of experts between which the model's router chooses first (default 1); each stays on one node "
     "where nodes divide groups, else groups and nodes do not count",
     kBalance},
    {"previous", "MAP",
     "the map that engines have now: what is said of before is of it, and the new map's epoch is one more "
     "(default: slot p has expert p mod experts, epoch 0)",
     kBalance},
    {"from", "MAP",
     "the expert map by which experts lie now, or how engines begin: contiguous or trivial (slot p has "
     "expert p mod experts), or round-robin; or published, where engines that run say themselves",
     kRebalance},
    {"to", "MAP", "the expert map by which they are to lie, of the same slots and a later epoch", kRebalance},
    {"max-moves", "N",
     "with --previous: in all layers together at most N slots get another expert (default: any number)",
     kBalance},
    {"output", "MAP", "the expert map to write; - is stdout, and what else is said goes to stderr", kBalance},
    {"to", "WHAT",
     "hf: a checkpoint with Hugging Face's names; megatron: trainers' shards; without it names stay as they "
     "are",
     kConvert},
    {"format", "NAME", "of trainers' shards: safetensors (default) or hdf5", kConvert},
    {"format", "NAME",
     "rankfile (mpirun -rf FILE) or hostlist (SLURM_HOSTFILE=FILE srun --distribution=arbitrary)", kHosts},
    {"clean", nullptr, "remove what exporters of this host and user that are dead have left, behind it DIR",
     kHosts},
    {"max-file-size", "BYTES", "data a safetensors file holds at most (default 5GB)", kSynth | kConvert},
    {"config", "FILE", "read options from FILE (or a pipe), lines of name = value", kAll, Ranks::kEachItsOwn},
    {"help,h", nullptr, "this text", kAll, Ranks::kEachItsOwn},
    {"version", nullptr, "versions of the program and its libraries", kAll, Ranks::kEachItsOwn},
});

}  // namespace

unsigned bit_of(std::string_view command) {
  unsigned bit = 1;
  for (const Command& known : commands()) {
    if (known.name == command) return bit;
    bit <<= 1;
  }
  return 0;
}

std::span<const OptionInfo> option_table() {
  return kOptions;
}

std::string long_name(const OptionInfo& option) {
  const std::string_view name = option.name;
  return std::string(name.substr(0, name.find(',')));
}

const OptionInfo* find_option(std::string_view name, unsigned command) {
  if (name == "help" || name == "version") return nullptr;
  const OptionInfo* found = nullptr;
  for (const OptionInfo& option : kOptions) {
    if (long_name(option) == name && (found == nullptr || (option.commands & command) != 0)) found = &option;
  }
  return found;
}

boost::program_options::options_description describe(unsigned command) {
  po::options_description description;
  for (const OptionInfo& option : option_table()) {
    if ((option.commands & command) == 0) continue;
    if (option.argument == nullptr) {
      description.add_options()(option.name, po::bool_switch(), option.help);
    } else if (option.repeats) {
      description.add_options()(
          option.name, po::value<std::vector<std::string>>()->value_name(option.argument), option.help);
    } else {
      description.add_options()(option.name, po::value<std::string>()->value_name(option.argument),
                                option.help);
    }
  }
  return description;
}

}  // namespace weightcast
