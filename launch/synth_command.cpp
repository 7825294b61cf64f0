#include <fmt/format.h>

#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/job.hpp"
#include "launch/tensor_copy.hpp"
#include "model/synthetic.hpp"
#include "report/log.hpp"

namespace weightcast {

void run_synth(const Options& options) {
  const std::unique_ptr<ModelConfig> config = load_config(options);
  const std::unique_ptr<Family> family = make_family(*config);
  const Catalog& catalog = family->catalog();
  const auto writer = create_checkpoint(options, options.weight_version, config->text(), catalog);
  Progress progress(options.progress, true);
  progress.begin(options.weight_version, catalog.bytes());
  for (std::uint32_t i = 0; i < catalog.size(); ++i) {
    const Tensor& tensor = catalog[i];
    copy_matrix(*writer, i, 0, tensor.shape, dtype_bytes(tensor.dtype), progress,
                [&](const Box& box, std::span<std::byte> to) {
                  fill_synthetic(tensor, options.weight_version, box.row * tensor.shape.cols() + box.col, to);
                });
  }
  progress.end();
  writer->flush();
  writer->commit();
  print_report(fmt::format("{}: {} tensors, {}, version {}\n", options.output, catalog.size(),
                           format_bytes(catalog.bytes()), options.weight_version));
}

}  // namespace weightcast
