#include "launch/files/checkpoint_output.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/units.hpp"
#include "launch/files/tensor_copy.hpp"
#include "report/activity.hpp"
#include "report/log.hpp"
#include "report/progress.hpp"
#include "sink/output_claim.hpp"
#include "storage/file_kind.hpp"
#include "storage/folder_savings.hpp"
#include "storage/hidden_names.hpp"
#include "storage/model_files.hpp"
#include "storage/output_lock.hpp"
#include "storage/rank_file.hpp"
#include "storage/trainer_shard.hpp"

namespace weightcast {

namespace {

/// Throws UsageError for an output that no checkpoint can be.
void require_checkpoint_output(const std::string& output) {
  if (output.empty()) {
    throw UsageError("--output PATH is needed: a directory for safetensors, or a file ending in .h5");
  }
  // A whole checkpoint beside trainers' shards would leave open which of them a folder means.
  const std::string directory = ends_as_hdf5(output) ? directory_of(output) : output;
  if (count_trainer_shards(directory) > 0) {
    throw UsageError(
        fmt::format("--output {}: {} holds trainers' shards; name another folder", output, directory));
  }
  // Nor may HDF5 files or shards lie beside safetensors: the folder is what a reader is told.
  const bool hdf5 = ends_as_hdf5(output);
  if (const std::string other = hdf5 ? safetensors_in(directory) : hdf5_or_shard_in(directory);
      !other.empty()) {
    throw UsageError(
        fmt::format("--output {}: {} would hold two savings, for {} is there; name another folder", output,
                    directory, other));
  }
  if (output.ends_with(".safetensors")) {
    throw UsageError(fmt::format(
        "--output {}: safetensors are written into a directory; name that, or a file ending in .h5", output));
  }
}

/// Whether a name is one that a checkpoint's file has in its folder.
bool is_checkpoint_file(std::string_view name) {
  return name == "config.json" || is_model_file(name);
}

/// The lock of an output. One file of a name that jobs into the whole folder write, or clear away, has the
/// folder's.
std::string lock_of(const std::string& output) {
  if (!ends_as_hdf5(output)) return folder_lock(output);
  const std::string name = std::filesystem::path(output).filename().string();
  return parse_rank_file(kShardStem, name) || is_trainer_shard(name) ? folder_lock(directory_of(output))
                                                                     : file_lock(output);
}

bool is_own_hdf5(const std::filesystem::path& path) {
  return is_file_of_kind(path, kCheckpointKind);
}

std::unique_ptr<TensorFileWriter> create_checkpoint(const Options& options, std::int64_t weight_version,
                                                    const std::string& config_text,
                                                    const std::vector<DatasetSpec>& tensors,
                                                    std::uint64_t origin) {
  if (ends_as_hdf5(options.output)) {
    return create_hdf5(
        options.output,
        {{"kind", std::string(kCheckpointKind)}, {"weight_version", weight_version}, {"config", config_text}},
        tensors);
  }
  Hasher conversion;
  conversion.add(origin).add(config_text).add(weight_version);
  return create_safetensors(options.output, config_text, tensors, options.max_file_size, weight_version,
                            fmt::format("{:016x}", conversion.digest()));
}

}  // namespace

std::vector<DatasetSpec> specs_of(const Family& family) {
  const Catalog& catalog = family.catalog();
  std::vector<DatasetSpec> specs;
  specs.reserve(catalog.size());
  for (const Tensor& tensor : catalog.tensors()) {
    DatasetSpec& spec =
        specs.emplace_back(DatasetSpec{family.name_in_files(tensor.name), tensor.dtype, tensor.shape});
    const std::optional<StoredForm> form = family.other_stored_form(tensor);
    if (!form || form->name != tensor.name) continue;
    spec.shape = form->shape;
    if (tensor.dtype == DType::kF4E2M1x2 || tensor.dtype == DType::kF8E8M0) spec.dtype = DType::kU8;
  }
  return specs;
}

void write_checkpoint(const Options& options, std::int64_t weight_version, const std::string& config_text,
                      const std::vector<DatasetSpec>& tensors, std::uint64_t origin, const ReadBox& read,
                      const std::function<void()>& confirm) {
  const std::int64_t total =
      std::accumulate(tensors.begin(), tensors.end(), std::int64_t{0},
                      [](std::int64_t sum, const DatasetSpec& tensor) { return sum + tensor.bytes(); });
  require_checkpoint_output(options.output);
  const bool hdf5 = ends_as_hdf5(options.output);
  const OutputClaim claim(lock_of(options.output), "--output " + options.output, options.command,
                          hdf5 ? LeftOvers(options.output, &is_own_hdf5)
                               : LeftOvers(options.output, &is_checkpoint_file, &is_own_model_file));
  require_checkpoint_output(options.output);  // what a job has put there that has ended since
  claim.clear();
  const auto writer = create_checkpoint(options, weight_version, config_text, tensors, origin);
  Progress progress(options.progress, true);
  progress.begin(options.output, total);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    copy_matrix(*writer, i, 0, tensors[i].shape, dtype_bytes(tensors[i].dtype), progress,
                [&](const Box& box, std::span<std::byte> to) { read(i, box, to); });
  }
  progress.end();
  confirm();
  claim.require_name();
  {
    Activity activity(options.progress, true);
    activity.begin(fmt::format("flushing {}", options.output));
    writer->flush();
  }
  require_no_signal(kNothingChanged);
  // Who is told that a signal came must not find new files in place.
  const DeferLastResort defer;
  writer->commit();
  claim.replaced();
  report_written(options.output, fmt::format("{}: {} tensors, {}, version {}", options.output, tensors.size(),
                                             format_bytes(total), weight_version));
}

void report_written(const std::string& output, const std::string& line) {
  try {
    print_line(line);
  } catch (const IoError& error) {
    throw IoError(fmt::format("{}; {} is written and in place", error.what(), output));
  }
}

}  // namespace weightcast
