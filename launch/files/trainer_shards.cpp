#include "launch/files/trainer_shards.hpp"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/float_bits.hpp"
#include "core/one_more.hpp"
#include "core/turned.hpp"
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
constexpr std::string_view kWholeInstead = "add --trainer-linear-attention whole";

/// A tensor that is held less one is written in float32, in which 1 more is what a bfloat16 was.
DType written_as(const TrainerTensor& tensor) {
  return tensor.less_one ? DType::kF32 : tensor.held.dtype;
}

/// Reads a box of a tensor and takes 1 from each element. Throws InputError for one that would not come back.
void read_one_less(const BoundReader& source, const Catalog& catalog, std::uint32_t tensor, const Box& box,
                   std::span<std::byte> to) {
  const auto [name, dtype] = std::pair(catalog[tensor].name, catalog[tensor].dtype);
  if (dtype != DType::kBF16 && dtype != DType::kF32) {
    throw InputError(fmt::format("{} is {}, of which nothing less one is written; {}", name,
                                 dtype_name(dtype), kWholeInstead));
  }
  const std::int64_t element = dtype_bytes(dtype);
  std::vector<std::byte> values(static_cast<std::size_t>(box.area() * element));
  source.read(tensor, box, values.data());
  for (std::int64_t i = 0; i < box.area(); ++i) {
    float value = 0;
    if (dtype == DType::kBF16) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, values.data() + i * element, sizeof(bits));
      value = bf16_value(bits);
    } else {
      std::memcpy(&value, values.data() + i * element, sizeof(value));
    }
    const std::optional<float> less = one_less(value);
    if (!less) {
      throw InputError(fmt::format(
          "{}: element {} is {}; Megatron-Core keeps it less one, which no float32 has without a loss; {}",
          name, box.row * box.cols + box.col + i, value, kWholeInstead));
    }
    std::memcpy(to.data() + i * 4, &*less, 4);
  }
}

/// Writes a tensor whose one part is there turned (core/turned.hpp).
void write_turned(TensorFileWriter& to, std::size_t index, const TrainerTensor& tensor,
                  const BoundReader& source, Progress& progress) {
  const Part& part = tensor.held.parts.front();
  const std::int64_t element = dtype_bytes(tensor.held.dtype);
  std::vector<std::byte> values(static_cast<std::size_t>(part.box.area() * element));
  source.read(part.tensor, part.box, values.data());
  copy_matrix(to, index, 0, {part.box.cols, part.box.rows}, element, progress,
              [&](const Box& box, std::span<std::byte> piece) {
                std::byte* at = piece.data();
                for (std::int64_t row = box.row; row < box.row + box.rows; ++row) {
                  const std::int64_t col = turned_column(row, part.box.cols, tensor.turned);
                  for (std::int64_t i = box.col; i < box.col + box.cols; ++i, at += element) {
                    std::memcpy(at, values.data() + (i * part.box.cols + col) * element,
                                static_cast<std::size_t>(element));
                  }
                }
              });
}

/// What one trainer holds, written beside its final name.
std::unique_ptr<TensorFileWriter> write_shard(const Options& options,
                                              const std::vector<TrainerTensor>& tensors, std::int64_t rank,
                                              const TrainerShardLabels& labels, const BoundReader& source,
                                              const Catalog& catalog, Progress& progress) {
  std::vector<DatasetSpec> specs;
  for (const TrainerTensor& tensor : tensors) {
    specs.push_back({tensor.held.name, written_as(tensor), tensor.held.shape});
  }
  auto writer = create_trainer_shard(options.output, rank, options.format == "hdf5", labels, specs);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Parameter& held = tensors[i].held;
    // A trainer's tensor is its parts one behind the other; what lies behind them is zero as it is.
    if (tensors[i].turned > 0) {
      write_turned(*writer, i, tensors[i], source, progress);
      continue;
    }
    const std::int64_t element = dtype_bytes(written_as(tensors[i]));
    for (const Part& part : held.parts) {
      const Box& whole = part.box;
      copy_matrix(*writer, i, part.offset / dtype_bytes(held.dtype) * element, {whole.rows, whole.cols},
                  element, progress, [&](const Box& piece, std::span<std::byte> to) {
                    const Box box{whole.row + piece.row, piece.rows, whole.col + piece.col, piece.cols};
                    if (tensors[i].less_one) return read_one_less(source, catalog, part.tensor, box, to);
                    source.read(part.tensor, box, to.data());
                  });
    }
  }
  writer->flush();
  return writer;
}

std::int64_t bytes_of(const std::vector<TrainerTensor>& tensors) {
  std::int64_t bytes = 0;
  for (const TrainerTensor& tensor : tensors) {
    for (const Part& part : tensor.held.parts) bytes += part.box.area() * dtype_bytes(written_as(tensor));
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
    shards.push_back(write_shard(options, trainer_tensors(*model.family, *layout, rank), rank, labels, source,
                                 model.family->catalog(), progress));
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
  for (const UnsentPart& unsent : model.family->unsent()) {
    log_note(fmt::format("{}: {}* is left out: the shards have the text model alone", output, unsent.prefix));
  }
  for (const std::string& path : others.foreign) {
    log_note(fmt::format("{} stays: this program has not written it; remove it if it is not meant", path));
  }
  report_written(output, fmt::format("{}: {} shards of {}, {}, version {}", output, shards.size(),
                                     labels.layout, format_bytes(total), version));
}

}  // namespace weightcast
