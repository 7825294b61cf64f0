#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/config_text.hpp"
#include "launch/files/checkpoint_origin.hpp"
#include "launch/files/checkpoint_output.hpp"
#include "launch/files/overlap.hpp"
#include "launch/files/trainer_shards.hpp"
#include "launch/layouts.hpp"
#include "launch/model.hpp"
#include "model/stored_names.hpp"
#include "report/log.hpp"
#include "source/bound_reader.hpp"
#include "storage/attributes.hpp"
#include "storage/file_format.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/reader.hpp"
#include "storage/writer.hpp"
#include "sys/thread_pool.hpp"

namespace weightcast {

namespace {

/// Throws UsageError for options that mean nothing without others.
void require_meaning(const Options& options) {
  const bool megatron = options.to == "megatron";
  if (options.sources.size() != 1) throw UsageError("convert takes exactly one --source PATH");
  if (options.format && !megatron) {
    throw UsageError(
        "--format: of trainers' shards; add --to megatron, or name an --output that ends in .h5");
  }
  if (options.has_max_file_size && megatron) {
    throw UsageError("--max-file-size: a trainer's shard is one file; leave it out");
  }
  if (options.to.empty() && trainer_layout_of(options)) {
    throw UsageError("--trainer-alloc: say with --to megatron or --to hf which way to convert");
  }
}

/// Throws InputError for a file of a rank, which is no checkpoint.
void require_whole(const Checkpoint& checkpoint) {
  for (const auto& [file, identity, hash] : checkpoint.files) {
    // What an HDF5 file has in others is bytes alone.
    if (!has_hdf5_signature(file) && !file.ends_with(file_extension(FileFormat::kSafetensors))) continue;
    const Attributes attributes = read_attributes(file);
    const auto kind = attributes.find("kind");
    if (kind == attributes.end()) continue;
    if (kind->second == Attributes::mapped_type(std::string("shard"))) {
      throw InputError(fmt::format(
          "{}: an inference rank's shard, no checkpoint; name the checkpoint that it was made from", file));
    }
    if (kind->second == Attributes::mapped_type(std::string("trainer"))) {
      throw InputError(fmt::format(
          "{}: a trainer's shard, no checkpoint; name its folder, with --to hf and --trainer-alloc", file));
    }
  }
}

/// From one container into the other, names as they are.
void copy_as_it_is(const Options& options) {
  // Before the headers: what was there at both times and has not changed in between was there together.
  std::vector<CheckpointFile> config_files;
  const std::unique_ptr<ModelConfig> config = load_config(options, &config_files);
  Checkpoint checkpoint = read_source(options, options.sources.front());
  add_texts(checkpoint, config_files);
  require_whole(checkpoint);
  require_other_place("--output", options.output, checkpoint);
  const CheckpointReader reader(checkpoint);
  std::vector<DatasetSpec> specs;
  for (const StoredTensor& tensor : checkpoint.tensors) {
    if (tensor.obstacle != nullptr && !tensor.obstacle->lost) {
      throw InputError(
          fmt::format("{}: tensor {} {}; with --to hf the model's own tensors alone are converted",
                      checkpoint.path, tensor.name, tensor.obstacle->why));
    }
    checkpoint.require_readable(tensor);
    specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  write_checkpoint(
      options, version_of(options, checkpoint), config->text(), specs, origin_of(checkpoint),
      [&](std::size_t i, const Box& box, std::span<std::byte> to) {
        reader.read(checkpoint.tensors[i], box, to);
      },
      [&] { reader.require_unchanged(); });
}

/// Reads consecutive elements of a tensor, number `first` and those behind it, as many as there is room for.
void read_run(const BoundReader& source, const Catalog& catalog, std::uint32_t number, std::int64_t first,
              std::span<std::byte> to) {
  const Tensor& tensor = catalog[number];
  const std::int64_t element = dtype_bytes(tensor.dtype);
  const std::int64_t cols = tensor.shape.cols();
  for (std::int64_t left = std::ssize(to) / element; left > 0;) {
    const std::int64_t col = first % cols;
    const std::int64_t rows = col == 0 ? std::max<std::int64_t>(1, left / cols) : 1;
    const Box box{first / cols, rows, col, std::min(left, cols - col)};
    const std::int64_t count = box.rows * box.cols;
    source.read(number, box, to.data());
    to = to.subspan(static_cast<std::size_t>(count * element));
    first += count;
    left -= count;
  }
}

/// Says that what a config describes beside the text model is not in the result.
void note_missing_towers(const std::string& source, const Family& family) {
  for (const UnsentPart& unsent : family.unsent()) {
    log_note(fmt::format("{}: has no {}*, which the config describes, and so has the result none", source,
                         unsent.prefix));
  }
}

/// The tensors of a checkpoint that see or hear, which a model of text has beside it.
std::vector<StoredTensor> tower_tensors(const Checkpoint& checkpoint, const Family& family) {
  const std::vector<std::string> towers = family.towers();
  std::vector<StoredTensor> found;
  for (const StoredTensor& stored : checkpoint.tensors) {
    const std::string name = without_wrappers(stored.name);
    if (std::ranges::none_of(towers, [&](const std::string& tower) { return name.starts_with(tower); }))
      continue;
    checkpoint.require_readable(stored);
    found.push_back(stored);
  }
  return found;
}

/// The model's tensors as its library calls them, from trainers' shards or a checkpoint; of a checkpoint what
/// sees or hears, too, as it is.
void write_canonical(const Options& options) {
  std::optional<TrainerLayout> layout = trainer_layout_of(options);
  const Model model = load_model(options, nullptr, layout);
  const Catalog& catalog = model.family->catalog();
  const auto& [checkpoint, binding] = model.sources.front();
  require_other_place("--output", options.output, checkpoint);
  if (const std::string note = binding.note(); !note.empty()) {
    log_note(fmt::format("{}: {}", checkpoint.path, note));
  }
  ThreadPool readers(1);
  require_equal_copies(options, *model.family, model.sources.front(), readers, {}, [] {});
  const BoundReader source(catalog, checkpoint, binding.held);
  std::vector<DatasetSpec> specs = specs_of(*model.family);
  const std::size_t of_model = specs.size();
  const std::vector<StoredTensor> towers = tower_tensors(checkpoint, *model.family);
  for (const StoredTensor& stored : towers) {
    specs.push_back({without_wrappers(stored.name), stored.dtype, stored.shape});
  }
  if (towers.empty()) note_missing_towers(checkpoint.path, *model.family);
  const CheckpointReader as_stored(checkpoint);
  write_checkpoint(
      options, version_of(options, checkpoint), model.config->text(), specs, origin_of(checkpoint),
      [&](std::size_t i, const Box& box, std::span<std::byte> to) {
        if (i >= of_model) return as_stored.read(towers[i - of_model], box, to);
        const std::int64_t first = box.row * specs[i].shape.cols() + box.col;
        read_run(source, catalog, static_cast<std::uint32_t>(i), first, to);
      },
      [&] {
        source.require_unchanged();
        as_stored.require_unchanged();
      });
}

}  // namespace

void run_convert(const Options& options, OutputFile* /*json*/) {
  require_meaning(options);
  if (options.to == "megatron") {
    write_trainer_shards(options);
  } else if (options.to == "hf") {
    write_canonical(options);
  } else {
    copy_as_it_is(options);
  }
}

}  // namespace weightcast
