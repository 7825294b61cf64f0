// weightcast-loader-engine: an engine that copies what comes through a window into memory of its own, as one
// does whose loader lays weights out, and says whether that holds a version whole.

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/units.hpp"
#include "storage/checkpoint.hpp"
#include "storage/reader.hpp"
#include "support/client_call.hpp"
#include "weightcast/client.h"

namespace weightcast::engine {
namespace {

using test_support::check;

volatile std::sig_atomic_t stopped = 0;

struct Options {
  std::string folder;
  std::string layout = "hf";
  int rank = 0;
  int ranks = 1;
  std::vector<std::string> checkpoints;
  std::int64_t limit = 0;
  std::string direct;
  int batch = 1;
  int at = -1;
  std::string does;
};

/// Tensors that lie one behind the other in a segment.
struct Part {
  std::byte* memory = nullptr;
  int segment = 0;
  std::vector<const StoredTensor*> tensors;
  std::vector<std::int64_t> offsets;
  std::int64_t bytes = 0;

  void add(const StoredTensor& tensor, std::int64_t alignment) {
    tensors.push_back(&tensor);
    offsets.push_back(bytes);
    bytes += round_up(tensor.bytes(), alignment);
  }
};

class LoaderEngine {
 public:
  explicit LoaderEngine(const Options& options) : options_(options) {
    for (const std::string& path : options.checkpoints) checkpoints_.push_back(read_checkpoint(path));
    for (const StoredTensor& tensor : checkpoints_.front().tensors) {
      const bool direct = !options.direct.empty() && tensor.name.find(options.direct) != std::string::npos;
      direct ? direct_.add(tensor, 64) : window_.add(tensor, ::sysconf(_SC_PAGESIZE));
    }
    check(weightcast_open(options.folder.c_str(), "engine", options.rank, options.ranks,
                          options.layout.c_str(), &export_));
    void* memory = nullptr;
    if (direct_.bytes > 0) {
      check(weightcast_add_segment(export_, direct_.bytes, &memory, &direct_.segment));
      direct_.memory = static_cast<std::byte*>(memory);
      publish(direct_);
    }
    check(weightcast_add_window(export_, window_.bytes, options.limit, &memory, &window_.segment));
    window_.memory = static_cast<std::byte*>(memory);
    publish(window_);
    for (const StoredTensor* tensor : window_.tensors)
      loaded_.emplace_back(static_cast<std::size_t>(tensor->bytes()));
    check(weightcast_publish(export_));
    std::ifstream manifest(fmt::format("{}/engine-{}.json", options.folder, options.rank));
    const auto published = nlohmann::json::parse(manifest);
    window_file_ = "/dev/shm" + published.at("segments").back().at("name").get<std::string>();
  }

  ~LoaderEngine() {
    constexpr double kSeconds = 10;
    weightcast_close(export_, kSeconds);
  }
  LoaderEngine(const LoaderEngine&) = delete;
  LoaderEngine& operator=(const LoaderEngine&) = delete;

  void serve() {
    say("published");
    while (stopped == 0) {
      const std::uint64_t question = weightcast_question(export_);
      if (question == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        continue;
      }
      constexpr double kSeconds = 600;
      std::int64_t version = 0;
      most_ = 0;
      int code = weightcast_pause_for(export_, question, kSeconds, &version);
      if (code == WEIGHTCAST_OK) code = load();
      if (code == WEIGHTCAST_OK) {
        check(weightcast_resume(export_));
        const std::string difference =
            first_difference(checkpoints_.at(static_cast<std::size_t>(version) % checkpoints_.size()));
        say(fmt::format("version {} {}, {} bytes at most, {} left", version,
                        difference.empty() ? "is there" : "differs in " + difference, most_, in_window()));
      } else {
        say(fmt::format("paused {} {}, {} left", code, weightcast_last_error(), in_window()));
      }
    }
  }

 private:
  static void say(const std::string& line) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  }

  void publish(const Part& part) {
    for (std::size_t i = 0; i < part.tensors.size(); ++i) {
      const StoredTensor& tensor = *part.tensors[i];
      const std::span<const std::int64_t> extents = tensor.shape.extents();
      check(weightcast_add_entry(
          export_, tensor.name.c_str(), std::string(dtype_safetensors_name(tensor.dtype)).c_str(),
          static_cast<int>(extents.size()), extents.data(), nullptr, part.segment, part.offsets[i]));
    }
  }

  int load() {
    std::vector<int> numbers(static_cast<std::size_t>(options_.batch));
    int loaded = 0;
    for (;;) {
      int count = 0;
      const int code = weightcast_landed(export_, numbers.data(), options_.batch, &count);
      if (code != WEIGHTCAST_OK || count == 0) return code;
      most_ = std::max(most_, in_window());
      for (const int number : std::span(numbers).first(static_cast<std::size_t>(count))) {
        if (loaded++ == options_.at) act();
        const std::size_t i = static_cast<std::size_t>(number) - direct_.tensors.size();
        std::memcpy(loaded_.at(i).data(), window_.memory + window_.offsets.at(i), loaded_.at(i).size());
      }
      if (std::exchange(given_up_, false)) {
        weightcast_abandon(export_, "a test wants it so");
        return weightcast_landed(export_, numbers.data(), options_.batch, &count);
      }
    }
  }

  /// Once, amid an update.
  void act() {
    options_.at = -1;
    if (options_.does == "stops") ::raise(SIGSTOP);
    if (options_.does == "dies") ::raise(SIGKILL);
    given_up_ = options_.does == "gives up";
  }

  /// Names the first tensor that is another one than in the checkpoint; empty when there is none.
  std::string first_difference(const Checkpoint& checkpoint) const {
    const CheckpointReader reader(checkpoint);
    const auto differs = [&](const StoredTensor& tensor, const std::byte* memory) {
      std::vector<std::byte> expected(static_cast<std::size_t>(tensor.bytes()));
      const StoredTensor& wanted = *checkpoint.find(tensor.name);
      reader.read(wanted, Box::whole(wanted.shape), expected);
      return std::memcmp(memory, expected.data(), expected.size()) != 0;
    };
    for (std::size_t i = 0; i < direct_.tensors.size(); ++i) {
      if (differs(*direct_.tensors[i], direct_.memory + direct_.offsets[i])) return direct_.tensors[i]->name;
    }
    for (std::size_t i = 0; i < window_.tensors.size(); ++i) {
      if (differs(*window_.tensors[i], loaded_[i].data())) return window_.tensors[i]->name;
    }
    return "";
  }

  /// Bytes of memory that the window takes up at the moment.
  std::int64_t in_window() const {
    constexpr std::int64_t kBlock = 512;
    struct stat status = {};
    return ::stat(window_file_.c_str(), &status) == 0 ? status.st_blocks * kBlock : -1;
  }

  Options options_;
  std::vector<Checkpoint> checkpoints_;
  weightcast_export* export_ = nullptr;
  Part direct_;
  Part window_;
  std::vector<std::vector<std::byte>> loaded_;  ///< of the window's tensors
  std::string window_file_;
  std::int64_t most_ = 0;  ///< of in_window() in an update
  bool given_up_ = false;
};

}  // namespace
}  // namespace weightcast::engine

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  weightcast::engine::Options options;
  po::options_description description("Usage: weightcast-loader-engine --folder DIR --checkpoint DIR …");
  auto add = description.add_options();
  add("folder", po::value(&options.folder)->required(), "where to publish");
  add("layout", po::value(&options.layout), "what the tensors are parameters of (default hf)");
  add("rank", po::value(&options.rank), "of the engines (default 0)");
  add("ranks", po::value(&options.ranks), "engines (default 1)");
  add("checkpoint", po::value(&options.checkpoints)->required()->composing(),
      "the values of version v are to be those of checkpoint v modulo how many there are");
  add("limit", po::value(&options.limit)->required(), "bytes that may be in the window at once");
  add("direct", po::value(&options.direct), "tensors whose name has that in it are published in place");
  add("batch", po::value(&options.batch), "tensors to take at a time, at most (default 1)");
  add("at", po::value(&options.at), "with --does: at that tensor of the first update");
  add("does", po::value(&options.does), "what it does there: stops (as by SIGSTOP), dies, gives up");
  try {
    po::variables_map values;
    po::store(po::parse_command_line(argc, argv, description), values);
    po::notify(values);
    std::signal(SIGTERM, [](int) { weightcast::engine::stopped = 1; });
    weightcast::engine::LoaderEngine(options).serve();
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "weightcast-loader-engine: error: {}\n", error.what());
    return 1;
  }
}
