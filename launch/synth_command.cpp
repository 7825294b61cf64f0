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
  std::vector<std::byte> piece(static_cast<std::size_t>(kCopyBytes));
  for (std::size_t i = 0; i < catalog.size(); ++i) {
    const Tensor& tensor = catalog.tensors()[i];
    const std::int64_t element = dtype_bytes(tensor.dtype);
    for_each_box(tensor.shape, element, [&](const Box& box) {
      const std::int64_t first = box.row * tensor.shape.cols() + box.col;
      const auto bytes = std::span(piece).first(static_cast<std::size_t>(box.area() * element));
      fill_synthetic(tensor, options.weight_version, first, bytes);
      writer->write(i, first * element, bytes);
      progress.advance(static_cast<std::int64_t>(bytes.size()));
    });
  }
  progress.end();
  writer->flush();
  writer->commit();
  print_report(fmt::format("{}: {} tensors, {}, version {}\n", options.output, catalog.size(),
                           format_bytes(catalog.bytes()), options.weight_version));
}

}  // namespace weightcast
