// weightcast-engine: loads one replica's shard files into a small inference engine, one process a
// tensor-parallel rank, and compares what it computes with references.

#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "engine/agreement.hpp"
#include "engine/engine.hpp"
#include "engine/files.hpp"
#include "engine/laid_out_source.hpp"
#include "engine/model_config.hpp"
#include "engine/mpi_group.hpp"
#include "engine/vocabulary.hpp"
#include "storage/rank_file.hpp"
#include "sys/mpi.hpp"

namespace weightcast::engine {
namespace {

namespace po = boost::program_options;

constexpr int kDisagreement = 1;

struct Options {
  std::string shards;
  std::int64_t replica = 0;
  std::string config;
  std::string expert_map;
  std::string reference;
  std::vector<std::string> others;
  std::optional<std::int64_t> generate;
  std::string label;
  double tolerance = kLogitTolerance;
  bool float32_frequencies = false;
  bool check = false;
};

/// Nothing when the user asked for help.
std::optional<Options> parse_options(int argc, char** argv) {
  Options options;
  po::options_description description(
      "Usage: mpirun -n TP weightcast-engine --shards DIR --config FILE --reference FILE [options]\n"
      "Runs one replica of a model from its shard files and compares it with references");
  auto add = description.add_options();
  add("help", "print this text");
  add("shards", po::value(&options.shards)->required(), "directory with rank-N.h5 or rank-N.safetensors");
  add("replica", po::value(&options.replica), "replica to run (default 0)");
  add("config", po::value(&options.config)->required(), "config.json of the model");
  add("expert-map", po::value(&options.expert_map), "the map by which experts sit in the shards' slots");
  add("reference", po::value(&options.reference)->required(),
      "reference.safetensors of the version that the shards should hold");
  add("other", po::value(&options.others)->composing(), "reference of another version (may repeat)");
  add("generate", po::value<std::int64_t>(), "tokens to generate (default: as many as the reference has)");
  add("label", po::value(&options.label), "text to start every line with");
  add("tolerance", po::value(&options.tolerance),
      "greatest difference of logits for --check, relative to the greatest logit (default 4e-4)");
  add("float32-frequencies", po::bool_switch(&options.float32_frequencies),
      "the reference was computed with rotary frequencies that were never in bfloat16");
  add("check", po::bool_switch(&options.check), "exit with 1 unless model and reference agree");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, description), values);
  if (values.count("help") != 0) {
    std::cout << description;
    return std::nullopt;
  }
  po::notify(values);
  if (values.count("generate") != 0) options.generate = values["generate"].as<std::int64_t>();
  return options;
}

void print_difference(const std::string& label, const Reference& reference, const Difference& difference,
                      const char* kind) {
  fmt::print("{}{} {}: max difference {:.3g} of max logit {:.4g} = {:.3g}, RMS {:.3g}\n", label, kind,
             reference.path, difference.greatest, difference.greatest_logit, difference.relative(),
             difference.root_mean_square);
}

int run(const Options& options, MpiGroup& group) {
  ModelConfig config = parse_model_config(read_text(options.config));
  if (options.float32_frequencies) config.bf16_frequencies = false;
  const Reference own = read_reference(options.reference);
  std::vector<Reference> others;
  for (const std::string& path : options.others) others.push_back(read_reference(path));

  const std::int64_t rank = options.replica * group.size() + group.rank();
  const std::string path = existing_rank_file(options.shards, kShardStem, rank);
  ShardFacts facts = read_shard_facts(path);
  if (!options.expert_map.empty()) {
    facts.layout.experts_of_slots = read_experts_of_slots(options.expert_map, facts.expert_epoch);
  }
  if (facts.replica != options.replica || facts.rank != rank) {
    throw InputError(fmt::format("{}: holds rank {} of replica {}", path, facts.rank, facts.replica));
  }
  if (!group.same_everywhere(facts.weight_version)) {
    throw InputError(fmt::format("{}: holds version {}, other shards another", path, facts.weight_version));
  }
  if (!group.same_everywhere(facts.layout.ep_size) || !group.same_everywhere(facts.layout.up_first ? 1 : 0)) {
    throw InputError(fmt::format("{}: was laid out in another way than other shards", path));
  }
  const FileSource file(path);
  const Model model(config, facts.layout, LaidOutSource(file, facts.moe_layout), group);

  const Agreement agreement = compare(model, own, others, options.generate.value_or(own.appended()));
  // Logits are gathered, so every rank comes to the same verdict; one of them says it.
  const std::vector<std::string> reasons = objections(agreement, own, others, options.tolerance);
  const std::string label = options.label.empty() ? "" : options.label + ": ";
  if (group.rank() == 0) {
    fmt::print("{}replica {}, version {}: {}\n", label, options.replica, facts.weight_version,
               printable_text(agreement.generated, config.vocab));
    print_difference(label, own, agreement.own, "own");
    for (std::size_t i = 0; i < others.size(); ++i) {
      print_difference(label, others[i], agreement.others[i], "other");
    }
    std::fflush(stdout);
  }
  if (!options.check || reasons.empty()) return static_cast<int>(ExitCode::kDone);
  for (const std::string& reason : reasons) {
    if (group.rank() == 0) fmt::print(stderr, "weightcast-engine: {}{}\n", label, reason);
  }
  return kDisagreement;
}

int run_ranks(const Options& options) {
  const MpiEnvironment environment;
  try {
    MpiGroup group(Communicator::duplicate(MPI_COMM_WORLD));
    return run(options, group);
  } catch (const std::exception& error) {
    // The other ranks may wait for this one, so it ends them all.
    const auto* known = dynamic_cast<const Error*>(&error);
    fmt::print(stderr, "weightcast-engine: error: {}\n", error.what());
    std::fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(known != nullptr ? known->code() : ExitCode::kInternal));
    throw;
  }
}

}  // namespace
}  // namespace weightcast::engine

int main(int argc, char** argv) {
  using weightcast::ExitCode;
  std::optional<weightcast::engine::Options> options;
  try {
    options = weightcast::engine::parse_options(argc, argv);
  } catch (const boost::program_options::error& error) {
    fmt::print(stderr, "weightcast-engine: error: {}\n", error.what());
    return static_cast<int>(ExitCode::kUsage);
  }
  return options ? weightcast::engine::run_ranks(*options) : static_cast<int>(ExitCode::kDone);
}
