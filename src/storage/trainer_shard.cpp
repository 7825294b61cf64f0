#include "storage/trainer_shard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "storage/attributes.hpp"
#include "storage/file_kind.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/input_file.hpp"
#include "storage/local_files.hpp"
#include "storage/model_files.hpp"
#include "storage/rank_file.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/safetensors_index.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr const char* kRankAttribute = "trainer_rank";
constexpr const char* kLayoutAttribute = "trainer_layout";

FileFormat format_of(bool hdf5) {
  return hdf5 ? FileFormat::kHdf5 : FileFormat::kSafetensors;
}

std::string path_of(const std::string& directory, std::int64_t rank, bool hdf5) {
  return (fs::path(directory) / rank_file_name(kTrainerStem, {rank, format_of(hdf5)})).string();
}

/// Nothing for another name, also for one with a number that no trainer has.
std::optional<RankFile> parse_name(std::string_view name) {
  constexpr std::int64_t kMostRanks = std::int64_t{1} << 20;
  const auto file = parse_rank_file(kTrainerStem, name);
  return file && file->rank < kMostRanks ? file : std::nullopt;
}

}  // namespace

bool is_trainer_shard(std::string_view name) {
  return parse_name(name).has_value();
}

std::string whole_checkpoint_in(const std::string& directory) {
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    std::string name = entry->path().filename().string();
    const bool model = name == kSafetensorsIndexName || is_model_data(name);
    if (model || (is_hdf5_name(name) && !parse_name(name))) return name;
  }
  return "";
}

std::int64_t count_trainer_shards(const std::string& directory) {
  std::int64_t count = 0;
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    const auto name = parse_name(entry->path().filename().string());
    if (name) count = std::max(count, name->rank + 1);
  }
  return count;
}

TrainerShard read_trainer_shard(const std::string& directory, std::int64_t rank, const std::string& layout,
                                OtherFiles other_files) {
  const std::string path = existing_rank_file(directory, kTrainerStem, rank);
  const FileIdentity identity = InputFile(path).identity();
  const Attributes attributes = read_attributes(path);
  const std::string written_rank = text_in(attributes, kRankAttribute);
  if (!written_rank.empty() && written_rank != std::to_string(rank)) {
    throw InputError(
        fmt::format("{} says that it is of trainer {}, not {}; was it renamed?", path, written_rank, rank));
  }
  const std::string written_layout = text_in(attributes, kLayoutAttribute);
  if (!written_layout.empty() && written_layout != layout) {
    throw InputError(
        fmt::format("{} was written for '{}', not for '{}'; name the layout that it was written "
                    "for",
                    path, written_layout, layout));
  }
  // A stage without layers, embedding and head has a file without tensors.
  Checkpoint shard;
  shard.path = path;
  shard.host = this_host();
  shard.weight_version = path.ends_with(file_extension(FileFormat::kHdf5))
                             ? read_hdf5_header(path, shard, other_files)
                             : read_safetensors_header(path, shard).weight_version;
  // Attributes and header are of one file.
  require_same_file(identity, shard.files.front());
  std::ranges::sort(shard.tensors, {}, &StoredTensor::name);
  return {std::move(shard), text_in(attributes, kConversionAttribute),
          !written_rank.empty() && !written_layout.empty()};
}

std::unique_ptr<TensorFileWriter> create_trainer_shard(const std::string& directory, std::int64_t rank,
                                                       bool hdf5, const TrainerShardLabels& labels,
                                                       const std::vector<DatasetSpec>& datasets) {
  const Attributes attributes{{"kind", std::string(kTrainerKind)},
                              {kRankAttribute, rank},
                              {kLayoutAttribute, labels.layout},
                              {kConversionAttribute, labels.id},
                              {kVersionAttribute, labels.weight_version}};
  return create_tensor_file(format_of(hdf5), path_of(directory, rank, hdf5), attributes, datasets, labels.id);
}

OtherTrainerShards other_trainer_shards(const std::string& directory, std::int64_t ranks, bool hdf5) {
  OtherTrainerShards others;
  std::error_code listing;
  fs::directory_iterator entry(directory, listing);
  for (const fs::directory_iterator end; !listing && entry != end; entry.increment(listing)) {
    const auto name = parse_name(entry->path().filename().string());
    if (!name || (name->rank < ranks && name->format == format_of(hdf5))) continue;
    const bool own = is_file_of_kind(entry->path(), kTrainerKind);
    (own ? others.own : others.foreign).push_back(entry->path().string());
  }
  if (listing && listing != std::errc::no_such_file_or_directory) {
    throw IoError(fmt::format("cannot list {}: {}; check the permissions", directory, listing.message()));
  }
  return others;
}

void require_own_trainer_shards(const std::string& directory, std::int64_t ranks, bool hdf5,
                                const std::string& config_text) {
  bool beside_own = !other_trainer_shards(directory, ranks, hdf5).own.empty();
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const std::string path = path_of(directory, rank, hdf5);
    require_free_or_own(path, kTrainerKind);
    beside_own = beside_own || !is_free(path);
  }
  require_own_config(directory, config_text, beside_own);
}

}  // namespace weightcast
