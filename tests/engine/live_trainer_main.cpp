// weightcast-live-trainer: publishes a checkpoint's tensors and offers versions of them, whose values are
// those of its checkpoints in turn.

#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "engine/published.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast::engine {
namespace {

struct Options {
  std::string folder;
  int rank = 0;
  int ranks = 1;
  std::vector<std::string> checkpoints;
  std::int64_t first = 1;
  std::int64_t versions = 1;
  double patience = 60;
};

int run(const Options& options) {
  std::vector<Checkpoint> checkpoints;
  for (const std::string& path : options.checkpoints) checkpoints.push_back(read_checkpoint(path));
  Published published({options.folder, "trainer", options.rank, options.ranks}, checkpoints.front(), 0);
  for (std::int64_t version = options.first; version < options.first + options.versions; ++version) {
    published.load(checkpoints.at(static_cast<std::size_t>(version) % checkpoints.size()));
    const int code = weightcast_offer(published.handle(), version, options.patience);
    fmt::print("offered {} {} {}\n", version, code, code == WEIGHTCAST_OK ? "" : weightcast_last_error());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace weightcast::engine

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  weightcast::engine::Options options;
  po::options_description description("Usage: weightcast-live-trainer --folder DIR --checkpoint DIR …");
  auto add = description.add_options();
  add("folder", po::value(&options.folder)->required(), "where to publish");
  add("rank", po::value(&options.rank), "of the trainers (default 0)");
  add("ranks", po::value(&options.ranks), "trainers (default 1)");
  add("checkpoint", po::value(&options.checkpoints)->required()->composing(),
      "the values of version v are those of checkpoint v modulo how many there are");
  add("first", po::value(&options.first), "version to begin with (default 1)");
  add("versions", po::value(&options.versions), "how many to offer (default 1)");
  add("patience", po::value(&options.patience), "seconds to wait for each (default 60)");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, description), values);
  po::notify(values);
  try {
    return weightcast::engine::run(options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "weightcast-live-trainer: error: {}\n", error.what());
    return 1;
  }
}
