// weightcast-live-engine: one replica that generates text from published memory, again and again, while new
// weights arrive in it. One process a tensor-parallel rank.

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <boost/program_options.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>

#include "core/error.hpp"
#include "engine/engine.hpp"
#include "engine/files.hpp"
#include "engine/laid_out_source.hpp"
#include "engine/model_config.hpp"
#include "engine/mpi_group.hpp"
#include "engine/published.hpp"
#include "engine/vocabulary.hpp"
#include "storage/rank_file.hpp"
#include "support/client_call.hpp"
#include "sys/mpi.hpp"

namespace weightcast::engine {
namespace {

std::atomic<bool> stopped = false;

struct Options {
  std::string folder;
  std::string shards;
  std::int64_t replica = 0;
  std::string config;
  std::string reference;
  std::int64_t tokens = 16;
  bool declines = false;
};

/// What rank 0 tells the others between two texts.
enum class Order : std::uint64_t { kGenerate, kWait, kPause, kStop };

void serve(const Options& options, MpiGroup& group, MPI_Comm comm) {
  const ModelConfig config = parse_model_config(read_text(options.config));
  const std::int64_t rank = options.replica * group.size() + group.rank();
  const std::string path = existing_rank_file(options.shards, kShardStem, rank);
  const ShardFacts facts = read_shard_facts(path);
  const Reference reference = read_reference(options.reference);
  const Exporter exporter{options.folder, "engine", static_cast<int>(rank),
                          static_cast<int>(facts.replicas * facts.layout.tp_size)};
  Published published(exporter, read_checkpoint(path), facts.weight_version);
  std::int64_t version = facts.weight_version;
  std::int64_t broken = 0;  // not 0: some rank's memory holds no version
  for (;;) {
    const std::uint64_t question = weightcast_question(published.handle());
    std::array<std::uint64_t, 2> told{
        static_cast<std::uint64_t>(broken != 0 ? Order::kWait : Order::kGenerate), question};
    if (question != 0) told[0] = static_cast<std::uint64_t>(Order::kPause);
    if (stopped) told[0] = static_cast<std::uint64_t>(Order::kStop);
    // The engine's own broadcast: all of its ranks stop at the same step.
    WEIGHTCAST_MPI(MPI_Bcast(told.data(), static_cast<int>(told.size()), MPI_UINT64_T, 0, comm));
    const auto order = static_cast<Order>(told[0]);
    if (order == Order::kStop) return;
    if (order == Order::kWait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    if (order == Order::kPause && options.declines) {
      // The other ranks do not answer at all.
      if (group.rank() == 0) weightcast_decline(published.handle(), "a test wants it so");
    } else if (order == Order::kPause) {
      constexpr double kSeconds = 600;
      std::int64_t brought = 0;
      const int code = weightcast_pause_for(published.handle(), told[1], kSeconds, &brought);
      if (code == WEIGHTCAST_OK) {
        test_support::check(weightcast_resume(published.handle()));
        version = brought;
      }
      // One rank may have been told otherwise than another: none of them then has a version to serve.
      const bool usable = code == WEIGHTCAST_OK || code == WEIGHTCAST_REFUSED || code == WEIGHTCAST_NO_ANSWER;
      broken = usable ? 0 : 1;
      WEIGHTCAST_MPI(MPI_Allreduce(MPI_IN_PLACE, &broken, 1, MPI_INT64_T, MPI_MAX, comm));
      if (group.rank() == 0) {
        fmt::print("paused {}, {}{}\n", code, broken != 0 ? "and it serves nothing: " : "",
                   code == WEIGHTCAST_OK ? "" : weightcast_last_error());
        std::fflush(stdout);
      }
      // Without a version it waits for the next update.
      if (broken != 0) continue;
    }
    // Every text from the memory as it is: read anew for each token.
    std::vector<std::int64_t> ids = reference.prompts.front();
    for (std::int64_t token = 0; token < options.tokens; ++token) {
      const Model model(config, facts.layout, LaidOutSource(published, facts.moe_layout), group);
      const std::vector<std::int64_t> longer = model.generate(ids, 1);
      if (longer.size() == ids.size()) break;
      ids = longer;
    }
    if (group.rank() != 0) continue;
    fmt::print("version {}: {}\n", version, printable_text(ids, config.vocab));
    std::fflush(stdout);
  }
}

int run(const Options& options) {
  const MpiEnvironment environment;
  std::signal(SIGTERM, [](int) { stopped = true; });
  try {
    MpiGroup group(Communicator::duplicate(MPI_COMM_WORLD));
    const Communicator orders = Communicator::duplicate(MPI_COMM_WORLD);
    serve(options, group, orders.get());
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "weightcast-live-engine: error: {}\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ExitCode::kInternal));
    throw;
  }
}

}  // namespace
}  // namespace weightcast::engine

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  weightcast::engine::Options options;
  po::options_description description(
      "Usage: mpirun -n TP weightcast-live-engine --folder DIR --shards DIR …");
  auto add = description.add_options();
  add("folder", po::value(&options.folder)->required(), "where to publish");
  add("shards", po::value(&options.shards)->required(),
      "directory with rank-N.h5 or .safetensors: the first weights");
  add("replica", po::value(&options.replica), "replica to run (default 0)");
  add("config", po::value(&options.config)->required(), "config.json of the model");
  add("reference", po::value(&options.reference)->required(), "reference.safetensors with the prompt");
  add("tokens", po::value(&options.tokens), "of a text (default 16)");
  add("declines", po::bool_switch(&options.declines), "declines every update");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, description), values);
  po::notify(values);
  return weightcast::engine::run(options);
}
