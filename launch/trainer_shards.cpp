#include "launch/trainer_shards.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "core/error.hpp"
#include "core/units.hpp"
#include "launch/layouts.hpp"
#include "launch/model.hpp"
#include "launch/tensor_copy.hpp"
#include "report/log.hpp"
#include "session/bound_reader.hpp"
#include "storage/partial_file.hpp"
#include "storage/trainer_shard.hpp"

namespace weightcast {

namespace {

std::int64_t version_of(const Options& options, const Checkpoint& checkpoint) {
  return options.has_weight_version ? options.weight_version : checkpoint.weight_version.value_or(0);
}

/// What one trainer holds, written beside its final name.
class ShardCopy {
 public:
  ShardCopy(const Options& options, const TrainerLayout& layout, const Model& model, std::int64_t rank,
            std::int64_t version)
      : tensors_(trainer_tensors(*model.family, layout, rank)) {
    std::vector<DatasetSpec> specs;
    for (const TrainerTensor& tensor : tensors_) {
      specs.push_back({tensor.held.name, tensor.held.dtype, tensor.held.shape});
      bytes_ += specs.back().bytes();
    }
    writer_ = create_trainer_shard(options.output, rank, options.format == "hdf5", layout.to_string(),
                                   version, specs);
  }

  std::int64_t bytes() const { return bytes_; }

  void copy(const BoundReader& source, Progress& progress) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const Parameter& held = tensors_[i].held;
      // A trainer's tensor is its parts one behind the other; what lies behind them is zero as it is.
      for (const Part& part : held.parts) {
        const Box& whole = part.box;
        copy_matrix(*writer_, i, part.offset, {whole.rows, whole.cols}, dtype_bytes(held.dtype), progress,
                    [&](const Box& box, std::span<std::byte> to) {
                      source.read(part.tensor, {whole.row + box.row, box.rows, whole.col + box.col, box.cols},
                                  to.data());
                    });
      }
    }
    writer_->flush();
  }

  void commit() { writer_->commit(); }

 private:
  std::vector<TrainerTensor> tensors_;
  std::int64_t bytes_ = 0;
  std::unique_ptr<TensorFileWriter> writer_;
};

}  // namespace

void write_trainer_shards(const Options& options) {
  std::optional<TrainerLayout> layout = trainer_layout_of(options);
  if (!layout)
    throw UsageError(
        "convert --to megatron: --trainer-alloc is needed; it says how trainers divide the model");
  if (options.output.empty()) throw UsageError("convert --to megatron: --output DIR is needed");
  std::optional<TrainerLayout> none;
  const Model model = load_model(options, none);
  const Checkpoint& checkpoint = model.checkpoints.front();
  const BoundReader source(model.family->catalog(), checkpoint, model.bindings.front());
  const std::int64_t version = version_of(options, checkpoint);
  std::vector<ShardCopy> shards;
  std::int64_t total = 0;
  for (std::int64_t rank = 0; rank < layout->ranks(); ++rank) {
    shards.emplace_back(options, *layout, model, rank, version);
    total += shards.back().bytes();
  }
  PartialFile config((std::filesystem::path(options.output) / "config.json").string());
  config.open();
  const std::string text = model.config->text();
  config.write_at(0, std::as_bytes(std::span(text)));
  Progress progress(options.progress, true);
  progress.begin(version, total);
  for (ShardCopy& shard : shards) shard.copy(source, progress);
  progress.end();
  config.flush();
  for (ShardCopy& shard : shards) shard.commit();
  config.rename_to_final();
  remove_other_trainer_shards(options.output, layout->ranks(), options.format == "hdf5");
  sync_directory(options.output);
  print_report(fmt::format("{}: {} shards of {}, {}, version {}\n", options.output, shards.size(),
                           layout->to_string(), format_bytes(total), version));
}

void write_canonical(const Options& options) {
  std::optional<TrainerLayout> layout = trainer_layout_of(options);
  const Model model = load_model(options, layout);
  const Catalog& catalog = model.family->catalog();
  const Checkpoint& checkpoint = model.checkpoints.front();
  const BoundReader source(catalog, checkpoint, model.bindings.front());
  const std::int64_t version = version_of(options, checkpoint);
  const auto writer = create_checkpoint(options, version, model.config->text(), catalog);
  Progress progress(options.progress, true);
  progress.begin(version, catalog.bytes());
  for (std::uint32_t i = 0; i < catalog.size(); ++i) {
    copy_matrix(*writer, i, 0, catalog[i].shape, dtype_bytes(catalog[i].dtype), progress,
                [&](const Box& box, std::span<std::byte> to) { source.read(i, box, to.data()); });
  }
  progress.end();
  writer->flush();
  writer->commit();
  print_report(fmt::format("{}: {} tensors, {}, version {}\n", options.output, catalog.size(),
                           format_bytes(catalog.bytes()), version));
}

}  // namespace weightcast
