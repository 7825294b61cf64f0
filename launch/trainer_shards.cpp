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
    std::vector<std::byte> piece(static_cast<std::size_t>(kCopyBytes));
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const Parameter& held = tensors_[i].held;
      const std::int64_t element = dtype_bytes(held.dtype);
      // A trainer's tensor is its parts one behind the other; what lies behind them is zero as it is.
      for (const Part& part : held.parts) {
        for_each_box({part.box.rows, part.box.cols}, element, [&](const Box& inner) {
          const Box box{part.box.row + inner.row, inner.rows, part.box.col + inner.col, inner.cols};
          const auto bytes = std::span(piece).first(static_cast<std::size_t>(box.area() * element));
          source.read(part.tensor, box, bytes.data());
          writer_->write(i, part.offset + inner.row * part.pitch + inner.col * element, bytes);
          progress.advance(static_cast<std::int64_t>(bytes.size()));
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
  std::vector<std::byte> piece(static_cast<std::size_t>(kCopyBytes));
  for (std::uint32_t i = 0; i < catalog.size(); ++i) {
    const Shape& shape = catalog[i].shape;
    const std::int64_t element = dtype_bytes(catalog[i].dtype);
    for_each_box(shape, element, [&](const Box& box) {
      const auto bytes = std::span(piece).first(static_cast<std::size_t>(box.area() * element));
      source.read(i, box, bytes.data());
      writer->write(i, (box.row * shape.cols() + box.col) * element, bytes);
      progress.advance(static_cast<std::int64_t>(bytes.size()));
    });
  }
  progress.end();
  writer->flush();
  writer->commit();
  print_report(fmt::format("{}: {} tensors, {}, version {}\n", options.output, catalog.size(),
                           format_bytes(catalog.bytes()), version));
}

}  // namespace weightcast
