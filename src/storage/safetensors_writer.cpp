#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "storage/dataset_specs.hpp"
#include "storage/file_kind.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hidden_names.hpp"
#include "storage/model_files.hpp"
#include "storage/partial_file.hpp"
#include "storage/removal.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/safetensors_index.hpp"
#include "storage/writer.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The datasets of one file, in the order in which their data lies in it.
struct Group {
  std::vector<std::size_t> members;
  std::int64_t bytes = 0;
};

std::vector<Group> group_by_size(const std::vector<DatasetSpec>& specs, std::int64_t max_file_bytes) {
  std::vector<Group> groups(1);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (!groups.back().members.empty() && specs[i].bytes() > max_file_bytes - groups.back().bytes) {
      groups.emplace_back();
    }
    groups.back().members.push_back(i);
    groups.back().bytes += specs[i].bytes();
  }
  // Wide elements first: then every tensor starts at a multiple of its element size.
  for (Group& group : groups) {
    std::stable_sort(group.members.begin(), group.members.end(), [&](std::size_t a, std::size_t b) {
      return dtype_bytes(specs[a].dtype) > dtype_bytes(specs[b].dtype);
    });
  }
  return groups;
}

std::vector<std::int64_t> header_shape(const DatasetSpec& spec) {
  std::vector<std::int64_t> extents(spec.shape.extents().begin(), spec.shape.extents().end());
  // The format counts 4-bit codes, a dataset bytes of two.
  if (spec.dtype == DType::kF4E2M1x2 && !extents.empty()) extents.back() *= 2;
  return extents;
}

std::string dump(const json& value, const std::string& path, int indent = -1) {
  try {
    return value.dump(indent);
  } catch (const json::exception& error) {
    throw InputError(fmt::format("{}: a tensor's name cannot be written as JSON: {}; rename it in the source",
                                 path, error.what()));
  }
}

// The header with the length before it and spaces after it, so that the data starts at a multiple of 8.
std::string header_bytes(const std::vector<DatasetSpec>& specs, const Group& group, const std::string& path,
                         const Attributes& attributes) {
  json header{{kSafetensorsMetadata, {{"format", "pt"}}}};
  for (const auto& [name, value] : attributes) {
    const auto* number = std::get_if<std::int64_t>(&value);
    header[kSafetensorsMetadata][std::string(kAttributePrefix) + name] =
        number != nullptr ? std::to_string(*number) : std::get<std::string>(value);
  }
  std::int64_t offset = 0;
  for (const std::size_t i : group.members) {
    if (utf8(specs[i].name) != specs[i].name) {
      throw InputError(
          fmt::format("{}: the name of tensor {} is no UTF-8, as safetensors want it; rename the tensor",
                      path, excerpt(specs[i].name)));
    }
    if (specs[i].name == kSafetensorsMetadata) {
      throw InputError(
          fmt::format("{}: a tensor cannot be named {}, which safetensors have for what they say of "
                      "themselves; rename it",
                      path, kSafetensorsMetadata));
    }
    // The format counts codes, of which a byte has two.
    if (specs[i].dtype == DType::kF4E2M1x2 && specs[i].shape.dims() == 0) {
      throw InputError(
          fmt::format("{}: tensor {} is one byte of {} codes without a dimension, for which "
                      "safetensors have no shape; write HDF5",
                      path, excerpt(specs[i].name), dtype_safetensors_name(specs[i].dtype)));
    }
    const std::int64_t end = offset + specs[i].bytes();
    header[specs[i].name] = {{"dtype", dtype_safetensors_name(specs[i].dtype)},
                             {"shape", header_shape(specs[i])},
                             {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = dump(header, path);
  text.resize(static_cast<std::size_t>(round_up(static_cast<std::int64_t>(text.size()), 8)), ' ');
  const auto length = static_cast<std::uint64_t>(text.size());
  text.insert(0, reinterpret_cast<const char*>(&length), kSafetensorsLengthBytes);
  return text;
}

class SafetensorsWriter final : public TensorFileWriter {
 public:
  SafetensorsWriter(const std::string& directory, const std::string& config_text,
                    const std::vector<DatasetSpec>& datasets, std::int64_t max_file_bytes,
                    const Attributes& attributes, const std::string& id)
      : SafetensorsWriter(directory, datasets, attributes, id) {
    require_space(path_of(kSafetensorsSingleName), check_dataset_specs(directory_, specs_));
    const auto groups = group_by_size(specs_, max_file_bytes);
    for (const Group& group : groups) {
      add_data_file(group, groups.size() == 1 ? std::string(kSafetensorsSingleName)
                                              : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                            files_.size() + 1, groups.size()));
    }
    whole_checkpoint_ = true;
    if (groups.size() > 1) add_text_file(kSafetensorsIndexName, index_text(groups));
    if (!config_text.empty()) add_text_file("config.json", config_text);
    add_removals();
    // Once more: some may have come before these files looked at what they replace.
    require_own_model_files(directory_, config_text);
  }

  // One file alone, beside others that are not this writer's.
  SafetensorsWriter(const fs::path& path, const std::vector<DatasetSpec>& datasets,
                    const Attributes& attributes, const std::string& id)
      : SafetensorsWriter(directory_of(path.string()), datasets, attributes, id) {
    require_space(path.string(), check_dataset_specs(path.string(), specs_));
    for (const Group& group : group_by_size(specs_, std::numeric_limits<std::int64_t>::max())) {
      add_data_file(group, path.filename().string());
    }
    require_free_or_own(path, attributes_);
  }

  void write(std::size_t index, std::int64_t offset, std::span<const std::byte> data) override {
    check_write_range(directory_, specs_, index, offset, data.size());
    const Place& place = places_.at(index);
    files_.at(place.file)->write_at(place.offset + offset, data);
  }

  void flush() override {
    for (const auto& file : files_) file->flush();
  }

  void prepare() override {
    const std::size_t known = removals_.size();
    if (whole_checkpoint_) add_removals();
    // What has come since says itself whose it is, or is somebody else's.
    for (std::size_t i = known; i < removals_.size(); ++i) {
      if (!is_own_model_file(removals_[i]->final_path())) refuse_foreign(removals_[i]->final_path());
    }
    prepare_together(parts());
  }
  void place() override { place_together(parts()); }
  void take_back() override { take_back_together(parts()); }
  void give_up() noexcept override {
    for (Replacement* part : parts()) part->give_up();
  }
  void settle() noexcept override {
    for (Replacement* part : parts()) part->settle();
  }
  void keep() noexcept override {
    for (Replacement* part : parts()) part->keep();
  }

 private:
  struct Place {
    std::size_t file = 0;
    std::int64_t offset = 0;
  };

  SafetensorsWriter(std::string directory, const std::vector<DatasetSpec>& datasets, Attributes attributes,
                    std::string id)
      : directory_(std::move(directory)),
        id_(std::move(id)),
        attributes_(std::move(attributes)),
        specs_(datasets),
        places_(datasets.size()) {}

  std::string path_of(const std::string& name) const { return (fs::path(directory_) / name).string(); }

  PartialFile& add_file(const std::string& name) {
    const std::string path = path_of(name);
    make_folder_of(path);
    return *files_.emplace_back(std::make_unique<PartialFile>(path, id_));
  }

  void add_data_file(const Group& group, const std::string& name) {
    PartialFile& file = add_file(name);
    const std::string header = header_bytes(specs_, group, file.final_path(), attributes_);
    auto offset = static_cast<std::int64_t>(header.size());
    for (const std::size_t i : group.members) {
      places_[i] = {files_.size() - 1, offset};
      offset += specs_[i].bytes();
    }
    file.reserve(offset);
    file.write_at(0, std::as_bytes(std::span(header)));
  }

  void add_text_file(const std::string& name, const std::string& text) {
    PartialFile& file = add_file(name);
    file.write_at(0, std::as_bytes(std::span(text)));
  }

  std::string index_text(const std::vector<Group>& groups) const {
    json map = json::object();
    std::int64_t total = 0;
    for (std::size_t file = 0; file < groups.size(); ++file) {
      const std::string name = fs::path(files_[file]->final_path()).filename().string();
      for (const std::size_t i : groups[file].members) map[specs_[i].name] = name;
      total += groups[file].bytes;
    }
    return dump({{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}}, directory_, 2) +
           "\n";
  }

  // Model files of an earlier checkpoint that this one does not overwrite: left there, an old index or old
  // shards would be read instead of, or beside, the new ones.
  void add_removals() {
    for (const fs::path& path : model_files_in(directory_)) {
      const auto has_its_name = [&](const auto& part) {
        return fs::path(part->final_path()).filename() == path.filename();
      };
      if (std::ranges::any_of(files_, has_its_name) || std::ranges::any_of(removals_, has_its_name)) continue;
      removals_.push_back(std::make_unique<Removal>(path.string(), id_));
    }
  }

  std::vector<Replacement*> parts() const {
    std::vector<Replacement*> parts;
    for (const auto& file : files_) parts.push_back(file.get());
    for (const auto& removal : removals_) parts.push_back(removal.get());
    return parts;
  }

  std::string directory_;
  std::string id_;
  Attributes attributes_;
  bool whole_checkpoint_ = false;
  std::vector<DatasetSpec> specs_;
  std::vector<Place> places_;
  // In the order of their renaming: data, then what leads readers to it.
  std::vector<std::unique_ptr<PartialFile>> files_;
  std::vector<std::unique_ptr<Removal>> removals_;
};

}  // namespace

std::unique_ptr<TensorFileWriter> create_safetensors(
    const std::string& directory, const std::string& config_text, const std::vector<DatasetSpec>& datasets,
    std::int64_t max_file_bytes, std::optional<std::int64_t> weight_version, const std::string& conversion) {
  if (max_file_bytes <= 0) {
    throw InternalError(
        fmt::format("{}: safetensors files of {} bytes asked for", directory, max_file_bytes));
  }
  require_own_model_files(directory, config_text);
  Attributes attributes{{kConversionAttribute, conversion}};
  if (weight_version) attributes[kVersionAttribute] = *weight_version;
  return std::make_unique<SafetensorsWriter>(directory, config_text, datasets, max_file_bytes, attributes,
                                             fresh_id());
}

std::unique_ptr<TensorFileWriter> create_safetensors_file(const std::string& path,
                                                          const Attributes& attributes,
                                                          const std::vector<DatasetSpec>& datasets,
                                                          const std::string& id) {
  return std::make_unique<SafetensorsWriter>(fs::path(path), datasets, attributes, id);
}

}  // namespace weightcast
