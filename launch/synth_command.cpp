#include <fmt/format.h>

#include <vector>

#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/config_text.hpp"
#include "launch/files/checkpoint_output.hpp"
#include "launch/files/overlap.hpp"
#include "launch/model.hpp"
#include "model/synthetic.hpp"
#include "storage/model_files.hpp"
#include "storage/partial_file.hpp"

namespace weightcast {

void run_synth(const Options& options, OutputFile* /*json*/) {
  require_other_place_than_model("--output", options.output, options.model);
  const std::unique_ptr<ModelConfig> config = load_config(options);
  const std::unique_ptr<Family> family = make_family(*config);
  const Catalog& catalog = family->catalog();
  try {
    require_space(ends_as_hdf5(options.output) ? options.output : options.output + "/model.safetensors",
                  catalog.bytes());
  } catch (const IoError& error) {
    throw IoError(fmt::format("{}, or write part of the model with --layers N", error.what()));
  }
  const std::vector<DatasetSpec> specs = specs_of(*family);
  write_checkpoint(
      options, options.weight_version, config->text(), specs, 0,
      [&](std::size_t i, const Box& box, std::span<std::byte> to) {
        const Tensor& tensor = catalog.tensors()[i];
        fill_synthetic(tensor, options.weight_version, box.row * specs[i].shape.cols() + box.col, to);
      },
      [] {});
}

}  // namespace weightcast
