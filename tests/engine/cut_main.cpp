// Writes the shard files that a correct transfer would leave, from the engine's own cut, so that
// weightcast-engine can be tested without the product.

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "engine/cut.hpp"
#include "engine/files.hpp"
#include "storage/writer.hpp"

namespace {

namespace po = boost::program_options;
using namespace weightcast;          // NOLINT(google-build-using-namespace)
using namespace weightcast::engine;  // NOLINT(google-build-using-namespace)

struct Options {
  std::string checkpoint;
  std::string output;
  std::int64_t version = 0;
  std::int64_t tp = 1;
  std::int64_t ep = 1;
  std::int64_t replicas = 1;
  std::string moe_layout = "triton";
};

Options parse_options(int argc, char** argv) {
  Options options;
  po::options_description description("options");
  auto add = description.add_options();
  add("checkpoint", po::value(&options.checkpoint)->required(), "directory with config.json");
  add("out", po::value(&options.output)->required(), "directory to write rank-N.h5 into");
  add("weight-version", po::value(&options.version), "version to record");
  add("tp", po::value(&options.tp), "tensor-parallel ranks of a replica");
  add("ep", po::value(&options.ep), "expert-parallel ranks of a replica");
  add("replicas", po::value(&options.replicas), "replicas");
  add("moe-layout", po::value(&options.moe_layout), "triton or cutlass");
  po::variables_map values;
  po::store(po::parse_command_line(argc, argv, description), values);
  po::notify(values);
  if (options.tp < 1 || options.ep < 1 || options.tp % options.ep != 0) throw UsageError("ep must divide tp");
  return options;
}

void write_rank(const Options& options, const RankLayout& layout, std::int64_t replica,
                const std::map<std::string, Tensor>& parameters) {
  const std::int64_t rank = replica * options.tp + layout.tp_rank;
  const Attributes attributes = {{"kind", std::string("shard")},
                                 {"weight_version", options.version},
                                 {"rank", rank},
                                 {"replica", replica},
                                 {"replicas", options.replicas},
                                 {"tp_rank", layout.tp_rank},
                                 {"tp_size", options.tp},
                                 {"ep_rank", layout.ep_rank},
                                 {"ep_size", options.ep},
                                 {"pp_rank", std::int64_t{0}},
                                 {"pp_size", std::int64_t{1}},
                                 {"moe_layout", options.moe_layout}};
  std::vector<DatasetSpec> datasets;
  datasets.reserve(parameters.size());
  for (const auto& [name, tensor] : parameters) datasets.push_back({name, DType::kBF16, tensor.shape});
  const auto file = create_hdf5(fmt::format("{}/rank-{}.h5", options.output, rank), attributes, datasets);
  std::size_t index = 0;
  for (const auto& [name, tensor] : parameters) {
    std::vector<std::uint16_t> bits(tensor.values.size());
    std::ranges::transform(tensor.values, bits.begin(), bf16_bits);
    if (!std::ranges::equal(bits, tensor.values, {}, bf16_value)) {
      throw InputError(fmt::format("parameter {} is not in bfloat16, the only type that is written", name));
    }
    file->write(index++, 0, std::as_bytes(std::span(bits)));
  }
  file->flush();
  file->commit();
}

void run(const Options& options) {
  const ModelConfig config = parse_model_config(read_text(options.checkpoint + "/config.json"));
  const FileSource checkpoint(options.checkpoint + "/model.safetensors");
  std::filesystem::create_directories(options.output);
  for (std::int64_t tp_rank = 0; tp_rank < options.tp; ++tp_rank) {
    const RankLayout layout{tp_rank, options.tp, tp_rank / (options.tp / options.ep), options.ep,
                            options.moe_layout == "cutlass"};
    const auto parameters = cut_rank(config, layout, checkpoint);
    for (std::int64_t replica = 0; replica < options.replicas; ++replica) {
      write_rank(options, layout, replica, parameters);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse_options(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "weightcast-engine-cut: error: {}\n", error.what());
    return static_cast<int>(ExitCode::kBadInput);
  }
}
