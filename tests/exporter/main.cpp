// weightcast-gpu-exporter: a trainer that offers versions of weights in its GPU's memory, or a rank of an
// engine there that lets itself be written and says whether what came is what was to come.

#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "exporter/gpu_published.hpp"
#include "kernels/cuda/cuda_synthetic.hpp"
#include "model/config.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"
#include "plan/rank_plan.hpp"
#include "storage/checkpoint.hpp"
#include "storage/input_file.hpp"
#include "storage/reader.hpp"
#include "support/client_call.hpp"
#include "sys/cuda.hpp"

namespace weightcast::gpu_test {
namespace {

constexpr std::int64_t kMostConfigBytes = std::int64_t{1} << 20;

struct Options {
  std::string folder;
  std::string role;
  int rank = 0;
  int ranks = 1;
  int device = 0;
  std::vector<std::string> checkpoints;
  std::string model;
  std::int64_t versions = 1;
  double patience = 120;
};

std::vector<GpuTensor> tensors_of(const Checkpoint& checkpoint) {
  std::vector<GpuTensor> tensors;
  for (const StoredTensor& tensor : checkpoint.tensors)
    tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
  return tensors;
}

/// What stands for a model without files: a trainer's whole tensors, or the parameters of an engine of one
/// rank.
class Synthetic {
 public:
  explicit Synthetic(const std::string& config)
      : family_(make_family(ModelConfig(read_text_file(config, kMostConfigBytes), config))) {}

  std::vector<GpuTensor> of_trainer() const {
    std::vector<GpuTensor> tensors;
    for (const Tensor& tensor : family_->catalog().tensors())
      tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
    return tensors;
  }

  std::vector<GpuTensor> of_engine() const {
    const Plan plan = make_plan(*family_, Topology{}, Limits{});
    std::vector<GpuTensor> tensors;
    for (const Parameter& parameter : make_rank_plan(plan, *family_, 1).parameters) {
      tensors.push_back({parameter.name, parameter.dtype, parameter.shape});
    }
    return tensors;
  }

  void fill(const GpuPublished& published, std::int64_t version) const {
    const Catalog& catalog = family_->catalog();
    for (std::uint32_t i = 0; i < catalog.size(); ++i) {
      const Tensor& tensor = catalog[i];
      fill_synthetic_on_device(tensor, version, 0, tensor.shape.elements(), published.tensors()[i].data,
                               nullptr);
    }
  }

 private:
  std::unique_ptr<Family> family_;
};

/// Bytes of a tensor in a checkpoint.
std::vector<std::byte> bytes_of(const Checkpoint& checkpoint, const CheckpointReader& reader,
                                const std::string& name) {
  const StoredTensor& tensor = *checkpoint.find(name);
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes()));
  reader.read(tensor, Box::whole(tensor.shape), bytes);
  return bytes;
}

void load(const GpuPublished& published, const Checkpoint& checkpoint) {
  const CheckpointReader reader(checkpoint);
  for (const GpuTensor& tensor : published.tensors()) {
    const std::vector<std::byte> bytes = bytes_of(checkpoint, reader, tensor.name);
    WEIGHTCAST_CUDA(cudaMemcpy(tensor.data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
}

/// The first tensor that is another one than in the checkpoint; empty when there is none.
std::string first_difference(const GpuPublished& published, const Checkpoint& checkpoint) {
  const CheckpointReader reader(checkpoint);
  for (const GpuTensor& tensor : published.tensors()) {
    std::vector<std::byte> found(static_cast<std::size_t>(tensor.bytes()));
    WEIGHTCAST_CUDA(cudaMemcpy(found.data(), tensor.data, found.size(), cudaMemcpyDeviceToHost));
    if (found != bytes_of(checkpoint, reader, tensor.name)) return tensor.name;
  }
  return "";
}

void say(const std::string& line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

void train(const Options& options, const std::vector<Checkpoint>& checkpoints) {
  std::unique_ptr<Synthetic> synthetic;
  if (checkpoints.empty()) synthetic = std::make_unique<Synthetic>(options.model);
  const GpuPublished published(options.folder, "trainer", options.rank, options.ranks,
                               synthetic ? synthetic->of_trainer() : tensors_of(checkpoints.front()));
  if (synthetic) synthetic->fill(published, 1);
  WEIGHTCAST_CUDA(cudaDeviceSynchronize());
  published.publish();
  for (std::int64_t version = 1; version <= options.versions; ++version) {
    if (!synthetic) load(published, checkpoints.at(static_cast<std::size_t>(version) % checkpoints.size()));
    const int code = weightcast_offer(published.handle(), version, options.patience);
    say(fmt::format("offered {} {} {}", version, code, code == WEIGHTCAST_OK ? "" : weightcast_last_error()));
  }
}

void serve(const Options& options, const std::vector<Checkpoint>& checkpoints) {
  const GpuPublished published(
      options.folder, "engine", options.rank, options.ranks,
      checkpoints.empty() ? Synthetic(options.model).of_engine() : tensors_of(checkpoints.front()));
  published.publish();
  say("published");
  for (;;) {
    std::int64_t version = 0;
    while (weightcast_wanted(published.handle(), &version) != 1) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    const auto start = std::chrono::steady_clock::now();
    const int code = weightcast_pause(published.handle(), options.patience, &version);
    const std::chrono::duration<double> paused = std::chrono::steady_clock::now() - start;
    if (code != WEIGHTCAST_OK) {
      say(fmt::format("paused {} {}", code, weightcast_last_error()));
      continue;
    }
    if (!checkpoints.empty()) {
      const Checkpoint& expected = checkpoints.at(static_cast<std::size_t>(version) % checkpoints.size());
      const std::string difference = first_difference(published, expected);
      say(fmt::format("version {} {}", version,
                      difference.empty() ? "is there" : "differs in " + difference));
    }
    test_support::check(weightcast_resume(published.handle()));
    say(fmt::format("version {} after a pause of {:.4f} s", version, paused.count()));
  }
}

void run(const Options& options) {
  WEIGHTCAST_CUDA(cudaSetDevice(options.device));
  std::vector<Checkpoint> checkpoints;
  for (const std::string& path : options.checkpoints) checkpoints.push_back(read_checkpoint(path));
  options.role == "trainer" ? train(options, checkpoints) : serve(options, checkpoints);
}

}  // namespace
}  // namespace weightcast::gpu_test

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  weightcast::gpu_test::Options options;
  po::options_description description("Usage: weightcast-gpu-exporter --folder DIR --role trainer|engine …");
  auto add = description.add_options();
  add("folder", po::value(&options.folder)->required(), "where to publish");
  add("role", po::value(&options.role)->required(), "trainer or engine; an engine serves until it is killed");
  add("rank", po::value(&options.rank), "of that role (default 0)");
  add("ranks", po::value(&options.ranks), "of that role (default 1)");
  add("device", po::value(&options.device), "CUDA device (default 0)");
  add("checkpoint", po::value(&options.checkpoints)->composing(),
      "what version v is, or becomes, is checkpoint v modulo how many there are");
  add("model", po::value(&options.model), "config.json of what is synthetic where there is no checkpoint");
  add("versions", po::value(&options.versions), "how many a trainer offers (default 1)");
  add("patience", po::value(&options.patience), "seconds to wait for each (default 120)");
  try {
    po::variables_map values;
    po::store(po::parse_command_line(argc, argv, description), values);
    po::notify(values);
    weightcast::gpu_test::run(options);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "weightcast-gpu-exporter: error: {}\n", error.what());
    return 1;
  }
}
