#include "launch/files/trainer_shards.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/files/checkpoint_origin.hpp"
#include "launch/files/checkpoint_output.hpp"
#include "launch/files/overlap.hpp"
#include "launch/files/tensor_copy.hpp"
#include "launch/layouts.hpp"
#include "launch/model.hpp"
#include "report/log.hpp"
#include "sink/output_claim.hpp"
#include "source/bound_reader.hpp"
#include "storage/file_kind.hpp"
#include "storage/hidden_names.hpp"
#include "storage/model_files.hpp"
#include "storage/output_lock.hpp"
#include "storage/partial_file.hpp"
#include "storage/removal.hpp"
#include "storage/trainer_shard.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

namespace {

constexpr std::string_view kConfigName = "config.json";

/// What one trainer holds, written beside its final name.
std::unique_ptr<TensorFileWriter> write_shard(const Options& options,
                                              const std::vector<TrainerTensor>& tensors, std::int64_t rank,
                                              const TrainerShardLabels& labels, const BoundReader& source,
                                              Progress& progress) {
  std::vector<DatasetSpec> specs;
  for (const TrainerTensor& tensor : tensors) {
    specs.push_back({tensor.held.name, tensor.held.dtype, tensor.held.shape});
  }
  auto writer = create_trainer_shard(options.output, rank, options.format == "hdf5", labels, specs);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Parameter& held = tensors[i].held;
    // A trainer's tensor is its parts one behind the other; what lies behind them is zero as it is.
    for (const Part& part : held.parts) {
      const Box& whole = part.box;
      copy_matrix(*writer, i, part.offset, {whole.rows, whole.cols}, dtype_bytes(held.dtype), progress,
                  [&](const Box& box, std::span<std::byte> to) {
                    source.read(part.tensor, {whole.row + box.row, box.rows, whole.col + box.col, box.cols},
                                to.data());
                  });
    }
  }
  writer->flush();
  return writer;
}

std::int64_t bytes_of(const std::vector<TrainerTensor>& tensors) {
  std::int64_t bytes = 0;
  for (const TrainerTensor& tensor : tensors) {
    for (const Part& part : tensor.held.parts) bytes += part.box.area() * dtype_bytes(tensor.held.dtype);
  }
  return bytes;
}

}  // namespace

void write_trainer_shards(const Options& options) {
  const std::optional<TrainerLayout> layout = trainer_layout_of(options);
  if (!layout) {
    throw UsageError(
        "convert --to megatron: --trainer-alloc is needed; it says how trainers divide the model");
  }
  const std::string& output = options.output;
  if (output.empty() || ends_as_hdf5(output) || output.ends_with(".safetensors")) {
    throw UsageError(fmt::format("--output {}: name the folder of the shards", output));
  }
  const std::string& from = options.sources.front();
  if (count_trainer_shards(from) > 0) {
    throw UsageError(
        fmt::format("--source {}: holds trainers' shards already; convert them --to hf first", from));
  }
  if (const std::string other = whole_checkpoint_in(output); !other.empty()) {
    throw UsageError(fmt::format("--output {}: holds {}, which is no trainer's shard; name another folder",
                                 output, other));
  }
  std::optional<TrainerLayout> none;
  const Model model = load_model(options, nullptr, none);
  const auto& [checkpoint, binding] = model.sources.front();
  require_other_place("--output", output, checkpoint);
  ThreadPool readers(1);
  require_equal_copies(options, *model.family, model.sources.front(), readers, {}, [] {});
  const BoundReader source(model.family->catalog(), checkpoint, binding.held);
  const std::int64_t version = version_of(options, checkpoint);
  std::int64_t total = 0;
  for (std::int64_t rank = 0; rank < layout->ranks(); ++rank) {
    total += bytes_of(trainer_tensors(*model.family, *layout, rank));
  }
  const TrainerShardLabels labels{layout->to_string(), version, fresh_id()};
  const OutputClaim claim(
      folder_lock(output), "--output " + output, options.command,
      LeftOvers(
          output, [](std::string_view name) { return name == kConfigName || is_trainer_shard(name); },
          [](const std::filesystem::path& path) { return is_file_of_kind(path, kTrainerKind); }));
  claim.clear();
  const bool hdf5 = options.format == "hdf5";
  const std::string text = model.config->text();
  const std::string config_path = (std::filesystem::path(output) / kConfigName).string();
  make_folder_of(config_path);
  PartialFile config(config_path, labels.id);
  require_own_trainer_shards(output, layout->ranks(), hdf5, text);
  config.write_at(0, std::as_bytes(std::span(text)));
  config.flush();
  Progress progress(options.progress, true);
  progress.begin(output, total);
  std::vector<std::unique_ptr<TensorFileWriter>> shards;
  for (std::int64_t rank = 0; rank < layout->ranks(); ++rank) {
    shards.push_back(
        write_shard(options, trainer_tensors(*model.family, *layout, rank), rank, labels, source, progress));
  }
  progress.end();
  source.require_unchanged();
  std::vector<Replacement*> files;
  for (const auto& shard : shards) files.push_back(shard.get());
  files.push_back(&config);
  const OtherTrainerShards others = other_trainer_shards(output, layout->ranks(), hdf5);
  std::vector<std::unique_ptr<Removal>> removals;
  for (const std::string& path : others.own) {
    files.push_back(removals.emplace_back(std::make_unique<Removal>(path, labels.id)).get());
    // Another one may have come since it was found.
    require_free_or_own(path, kTrainerKind);
  }
  claim.require_name();
  require_no_signal(kNothingChanged);
  const DeferLastResort defer;
  replace_together(files);
  claim.replaced();
  for (const std::string& path : others.foreign) {
    log_note(fmt::format("{} stays: this program has not written it; remove it if it is not meant", path));
  }
  report_written(output, fmt::format("{}: {} shards of {}, {}, version {}", output, shards.size(),
                                     labels.layout, format_bytes(total), version));
}

}  // namespace weightcast
