#include "launch/files/shard_set.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/text.hpp"
#include "model/layer_counts.hpp"
#include "storage/attributes.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// The shard files of a folder by rank, all of one format.
std::vector<RankFile> list_shards(const std::string& directory) {
  std::error_code error;
  if (!is_named(directory) || !fs::is_directory(directory, error))
    throw IoError(fmt::format("{}: no such folder of shard files; name that of --sink", directory));
  std::vector<RankFile> files;
  fs::directory_iterator entries(directory, error);
  if (error)
    throw IoError(fmt::format("cannot list {}: {}; check the permissions", directory, error.message()));
  for (const auto& entry : entries) {
    if (const auto file = parse_rank_file(kShardStem, entry.path().filename().string())) {
      files.push_back(*file);
    }
  }
  if (files.empty()) {
    throw InputError(fmt::format(
        "{}: no shard files (rank-<n>.h5 or rank-<n>.safetensors); name the folder of --sink", directory));
  }
  std::ranges::sort(files, {}, [](const RankFile& file) { return std::pair(file.rank, file.format); });
  const RankFile first = files.front();
  const auto other = std::ranges::find_if_not(
      files, [&](FileFormat format) { return format == first.format; }, &RankFile::format);
  if (other != files.end()) {
    throw InputError(
        fmt::format("{}: mixed shards: {} and {} are of two formats; remove those that are not meant, or run "
                    "the update again",
                    directory, rank_file_name(kShardStem, first), rank_file_name(kShardStem, *other)));
  }
  return files;
}

/// Throws InputError unless a file's name and attributes agree on which rank's it is.
void require_own_place(const EngineLayout& layout, const Shard& shard) {
  const std::int64_t rank = shard.integer("rank");
  const EngineRank place = engine_rank(layout, rank);
  if (shard.file.rank != rank || shard.integer("replica") != place.replica ||
      shard.integer("pp_rank") != place.pp || shard.integer("tp_rank") != place.tp ||
      shard.integer("ep_rank") != place.ep ||
      shard.integer_or("attn_tp_rank", place.attention_tp) != place.attention_tp ||
      shard.integer_or("attn_dp_rank", place.attention_dp) != place.attention_dp) {
    throw InputError(
        fmt::format("{}: its attributes say rank {} (replica {}, pp {}, tp {}, ep {}), which its name or "
                    "the layout contradicts; was it renamed?",
                    shard.path, rank, shard.integer("replica"), shard.integer("pp_rank"),
                    shard.integer("tp_rank"), shard.integer("ep_rank")));
  }
}

/// Whose names a shard's parameters have. Shards of before this was recorded are SGLang's, or say that they
/// are canonical.
Engine engine_of(const Shard& shard) {
  const std::string name = shard.optional_text("engine");
  if (name.empty()) return shard.optional_text("parameters") == "canonical" ? Engine::kHf : Engine::kSglang;
  const auto engine = find_engine(name);
  if (!engine) {
    throw InputError(
        fmt::format("{}: has the parameters of engine {}, which is not known here; verify with the version "
                    "of the program that wrote it",
                    shard.path, excerpt(name)));
  }
  return *engine;
}

}  // namespace

std::int64_t Shard::integer(const std::string& name) const {
  const auto value = integer_in(attributes, name);
  if (!value) throw unfit(name, "one integer");
  return *value;
}

std::int64_t Shard::integer_or(const std::string& name, std::int64_t absent) const {
  return attributes.contains(name) ? integer(name) : absent;
}

std::string Shard::text(const std::string& name) const {
  const auto found = attributes.find(name);
  const auto* value = found == attributes.end() ? nullptr : std::get_if<std::string>(&found->second);
  if (value == nullptr) throw unfit(name, "one text");
  return *value;
}

std::string Shard::optional_text(const std::string& name) const {
  return attributes.contains(name) ? text(name) : std::string();
}

InputError Shard::unfit(const std::string& name, const char* expected) const {
  const bool there = attributes.contains(name);
  return InputError(
      fmt::format("{}: attribute weightcast.{} is {}; is it a shard file of this program? run "
                  "the update again",
                  path, name, there ? std::string("not ") + expected : "missing"));
}

std::size_t count_shards(const std::string& directory) {
  std::error_code error;
  std::size_t shards = 0;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (parse_rank_file(kShardStem, entry.path().filename().string())) ++shards;
  }
  return shards;
}

std::vector<Shard> read_shards(const std::string& directory) {
  std::vector<Shard> shards;
  for (const RankFile& file : list_shards(directory)) {
    const std::string path = (fs::path(directory) / rank_file_name(kShardStem, file)).string();
    const FileIdentity identity = InputFile(path).identity();
    shards.push_back({path, file, identity, read_attributes(path)});
  }
  return shards;
}

WrittenPlacement placement_of(const Shard& shard) {
  WrittenPlacement placement{shard.integer_or("expert_epoch", 0), shard.optional_text("expert_placement")};
  if (placement.fingerprint.empty()) placement.fingerprint = ExpertPlacement().fingerprint();
  return placement;
}

EngineLayout common_layout(const std::string& directory, const std::vector<Shard>& shards) {
  const Shard& first = shards.front();
  for (const Shard& shard : shards) {
    if (shard.text("kind") != "shard")
      throw InputError(fmt::format("{}: is no shard file; run the update again", shard.path));
    for (const char* name : {"weight_version", "replicas", "pp_size", "tp_size", "ep_size"}) {
      if (shard.integer(name) != first.integer(name)) {
        throw InputError(fmt::format("{}: mixed shards: {} has {} {}, {} has {}; run the update again",
                                     directory, fs::path(first.path).filename().string(), name,
                                     first.integer(name), fs::path(shard.path).filename().string(),
                                     shard.integer(name)));
      }
    }
    for (const auto& [name, absent] :
         {std::pair{"attn_tp_size", 1}, {"attn_dp_size", 1}, {"expert_epoch", 0}}) {
      if (shard.integer_or(name, absent) == first.integer_or(name, absent)) continue;
      throw InputError(fmt::format("{}: mixed shards: {} has {} {}, {} has {}; run the update again",
                                   directory, fs::path(first.path).filename().string(), name,
                                   first.integer_or(name, absent), fs::path(shard.path).filename().string(),
                                   shard.integer_or(name, absent)));
    }
    for (const char* name : {"engine", "parameters", "quantizer", "activation_scales", "stage_layers",
                             "expert_placement", "landing"}) {
      if (shard.optional_text(name) != first.optional_text(name)) {
        throw InputError(fmt::format("{}: mixed shards: {} '{}' and '{}'; run the update again", directory,
                                     name, excerpt(first.optional_text(name)),
                                     excerpt(shard.optional_text(name))));
      }
    }
    if (shard.text("moe_layout") != first.text("moe_layout")) {
      throw InputError(fmt::format("{}: mixed shards: MoE layouts {} and {}; run the update again", directory,
                                   excerpt(first.text("moe_layout")), excerpt(shard.text("moe_layout"))));
    }
    if (shard.optional_text("update") != first.optional_text("update")) {
      throw InputError(
          fmt::format("{}: mixed shards: {} and {} are of different updates; run the update again", directory,
                      fs::path(first.path).filename().string(), fs::path(shard.path).filename().string()));
    }
  }
  EngineLayout layout;
  layout.replicas = first.integer("replicas");
  layout.pp = first.integer("pp_size");
  layout.tp = first.integer("tp_size");
  layout.ep = first.integer("ep_size");
  layout.attention_dp = first.integer_or("attn_dp_size", 1);
  layout.moe_layout = first.text("moe_layout");
  layout.engine = engine_of(first);
  layout.landing = first.optional_text("landing");
  if (const std::string name = first.optional_text("quantizer"); !name.empty()) {
    try {
      layout.quantizer = parse_quantizer(name);
      layout.activations = parse_activation_scales(first.text("activation_scales"));
    } catch (const UsageError& error) {
      throw InputError(
          fmt::format("{}: attributes of its quantiser: {}; run the update again", first.path, error.what()));
    }
  }
  if (const std::string stages = first.optional_text("stage_layers"); !stages.empty()) {
    try {
      layout.stage_layers = parse_layer_counts("attribute stage_layers", stages);
    } catch (const UsageError& error) {
      throw InputError(fmt::format("{}: {}; run the update again", first.path, error.what()));
    }
  }
  // As large as options may name them: products of the three stay numbers.
  constexpr std::int64_t kMost = 1 << 20;
  const auto possible = [](std::int64_t size) { return size >= 1 && size <= kMost; };
  if (!possible(layout.replicas) || !possible(layout.pp) || !possible(layout.tp) || !possible(layout.ep) ||
      layout.tp % layout.ep != 0 || !possible(layout.attention_dp) || layout.tp % layout.attention_dp != 0 ||
      first.integer_or("attn_tp_size", layout.attention_tp()) != layout.attention_tp()) {
    throw InputError(fmt::format(
        "{}: impossible layout tp={} ep={} pp={} replicas={} attn_tp={} attn_dp={}; run the update "
        "again",
        first.path, layout.tp, layout.ep, layout.pp, layout.replicas,
        first.integer_or("attn_tp_size", layout.tp), layout.attention_dp));
  }
  for (const Shard& shard : shards) require_own_place(layout, shard);
  for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) {
    const auto at = static_cast<std::size_t>(rank);
    if (at >= shards.size() || shards[at].integer("rank") != rank) {
      throw InputError(fmt::format("{}: {} of {} is missing; run the update again", directory,
                                   rank_file_name(kShardStem, {rank, first.file.format}), layout.ranks()));
    }
  }
  if (static_cast<std::int64_t>(shards.size()) != layout.ranks()) {
    throw InputError(fmt::format("{}: {} shard files for {} ranks; remove those of an earlier layout",
                                 directory, shards.size(), layout.ranks()));
  }
  return layout;
}

}  // namespace weightcast
