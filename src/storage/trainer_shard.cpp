#include "storage/trainer_shard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "storage/file_kind.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/input_file.hpp"
#include "storage/local_files.hpp"
#include "storage/model_files.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/safetensors_index.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr const char* kRankAttribute = "trainer_rank";
constexpr const char* kLayoutAttribute = "trainer_layout";
constexpr std::string_view kSafetensors = ".safetensors";
constexpr std::string_view kHdf5 = ".h5";

std::string path_of(const std::string& directory, std::int64_t rank, std::string_view extension) {
  return (fs::path(directory) / fmt::format("trainer-{}{}", rank, extension)).string();
}

struct ShardName {
  std::int64_t rank = 0;
  bool hdf5 = false;
};

/// `trainer-3.h5`; nothing for another name.
std::optional<ShardName> parse_name(std::string_view name) {
  constexpr std::string_view kStem = "trainer-";
  constexpr std::int64_t kMostRanks = std::int64_t{1} << 20;
  if (!name.starts_with(kStem)) return std::nullopt;
  ShardName result;
  const char* last = name.data() + name.size();
  const auto [end, status] = std::from_chars(name.data() + kStem.size(), last, result.rank);
  const std::string_view extension(end, static_cast<std::size_t>(last - end));
  result.hdf5 = extension == kHdf5;
  const bool known = result.hdf5 || extension == kSafetensors;
  if (status != std::errc() || !known || result.rank < 0 || result.rank >= kMostRanks) return std::nullopt;
  return result;
}

/// An attribute as text, in either format; empty when it is not there.
std::string text_of(const Attributes& attributes, const char* name) {
  const auto found = attributes.find(name);
  if (found == attributes.end()) return "";
  const auto* number = std::get_if<std::int64_t>(&found->second);
  return number != nullptr ? std::to_string(*number) : std::get<std::string>(found->second);
}

std::string existing_path(const std::string& directory, std::int64_t rank) {
  const std::string safetensors = path_of(directory, rank, kSafetensors);
  const std::string hdf5 = path_of(directory, rank, kHdf5);
  std::error_code error;
  const bool has_safetensors = fs::exists(safetensors, error);
  const bool has_hdf5 = fs::exists(hdf5, error);
  if (has_safetensors && has_hdf5) {
    throw InputError(fmt::format("{}: {} is beside it; remove the one that is not meant", safetensors,
                                 fs::path(hdf5).filename().string()));
  }
  if (!has_safetensors && !has_hdf5) {
    throw IoError(
        fmt::format("{} is not there, nor with .h5; every trainer needs its own file", safetensors));
  }
  return has_hdf5 ? hdf5 : safetensors;
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
  const std::string path = existing_path(directory, rank);
  const FileIdentity identity = InputFile(path).identity();
  const Attributes attributes =
      path.ends_with(kHdf5) ? read_attributes(path) : read_safetensors_attributes(path);
  const std::string written_rank = text_of(attributes, kRankAttribute);
  if (!written_rank.empty() && written_rank != std::to_string(rank)) {
    throw InputError(
        fmt::format("{} says that it is of trainer {}, not {}; was it renamed?", path, written_rank, rank));
  }
  const std::string written_layout = text_of(attributes, kLayoutAttribute);
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
  shard.weight_version = path.ends_with(kHdf5) ? read_hdf5_header(path, shard, other_files)
                                               : read_safetensors_header(path, shard).weight_version;
  // Attributes and header are of one file.
  require_same_file(identity, shard.files.front());
  std::ranges::sort(shard.tensors, {}, &StoredTensor::name);
  return {std::move(shard), text_of(attributes, kConversionAttribute),
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
  return hdf5 ? create_hdf5(path_of(directory, rank, kHdf5), attributes, datasets, labels.id)
              : create_safetensors_file(path_of(directory, rank, kSafetensors), attributes, datasets,
                                        labels.id);
}

OtherTrainerShards other_trainer_shards(const std::string& directory, std::int64_t ranks, bool hdf5) {
  OtherTrainerShards others;
  std::error_code listing;
  fs::directory_iterator entry(directory, listing);
  for (const fs::directory_iterator end; !listing && entry != end; entry.increment(listing)) {
    const auto name = parse_name(entry->path().filename().string());
    if (!name || (name->rank < ranks && name->hdf5 == hdf5)) continue;
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
    const std::string path = path_of(directory, rank, hdf5 ? kHdf5 : kSafetensors);
    require_free_or_own(path, kTrainerKind);
    beside_own = beside_own || !is_free(path);
  }
  require_own_config(directory, config_text, beside_own);
}

}  // namespace weightcast
