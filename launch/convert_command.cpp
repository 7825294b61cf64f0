#include <fmt/format.h>

#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/commands.hpp"
#include "launch/job.hpp"
#include "launch/tensor_copy.hpp"
#include "launch/trainer_shards.hpp"
#include "report/log.hpp"
#include "storage/reader.hpp"

namespace weightcast {

void run_convert(const Options& options) {
  if (options.sources.size() != 1) throw UsageError("convert takes exactly one --source PATH");
  if (options.to == "megatron") return write_trainer_shards(options);
  if (options.to == "hf") return write_canonical(options);
  const Checkpoint checkpoint = read_checkpoint(options.sources.front());
  for (const std::string& file : checkpoint.files) {
    if (file.ends_with(".safetensors")) continue;
    const Attributes attributes = read_attributes(file);
    const auto kind = attributes.find("kind");
    if (kind != attributes.end() && kind->second == Attributes::mapped_type(std::string("shard"))) {
      throw InputError(fmt::format(
          "{}: an inference rank's shard, no checkpoint; name the checkpoint that it was made from", file));
    }
  }
  const CheckpointReader reader(checkpoint);
  std::vector<DatasetSpec> specs;
  std::int64_t total = 0;
  for (const StoredTensor& tensor : checkpoint.tensors) {
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    total += tensor.bytes();
  }
  const std::int64_t version =
      options.has_weight_version ? options.weight_version : checkpoint.weight_version.value_or(0);
  const auto writer = create_checkpoint(options, version, load_config(options)->text(), specs);
  Progress progress(options.progress, true);
  progress.begin(version, total);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const StoredTensor& tensor = checkpoint.tensors[i];
    copy_matrix(*writer, i, 0, tensor.shape, dtype_bytes(tensor.dtype), progress,
                [&](const Box& box, std::span<std::byte> to) { reader.read(tensor, box, to); });
  }
  progress.end();
  writer->flush();
  writer->commit();
  print_report(fmt::format("{}: {} tensors, {}, version {}\n", options.output, specs.size(),
                           format_bytes(total), version));
}

}  // namespace weightcast
