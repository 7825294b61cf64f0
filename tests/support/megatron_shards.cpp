#include "support/megatron_shards.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <stdexcept>

#include "storage/checkpoint.hpp"
#include "storage/reader.hpp"
#include "storage/writer.hpp"
#include "support/files.hpp"
#include "support/tensor_cuts.hpp"

namespace weightcast::test_support {

namespace {

using Tensor = SafetensorsFile::Tensor;

std::int64_t divide(std::int64_t total, std::int64_t parts) {
  if (total % parts != 0) {
    throw std::runtime_error(fmt::format("{} does not divide {}", parts, total));
  }
  return total / parts;
}

Tensor row_share(const Tensor& whole, std::int64_t rank, std::int64_t ranks) {
  const std::int64_t count = divide(whole.shape.at(0), ranks);
  return rows(whole, rank * count, count);
}

Tensor column_share(const Tensor& whole, std::int64_t rank, std::int64_t ranks) {
  const std::int64_t count = divide(whole.shape.at(1), ranks);
  return columns(whole, rank * count, count);
}

/// The same shape, full of one byte.
Tensor filled(Tensor tensor, char byte) {
  std::fill(tensor.data.begin(), tensor.data.end(), byte);
  return tensor;
}

/// For each kv group its query heads, its key head and its value head.
Tensor interleaved(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t groups) {
  std::vector<Tensor> heads;
  for (std::int64_t group = 0; group < groups; ++group) {
    for (const Tensor* projection : {&q, &k, &v}) heads.push_back(row_share(*projection, group, groups));
  }
  return stacked(heads);
}

/// Where a rank stands.
struct Place {
  std::int64_t stage = 0;
  std::int64_t tp = 0;
  std::int64_t etp = 0;
  std::int64_t ep = 0;
};

Place place_of(const MegatronLayout& layout, std::int64_t rank) {
  std::int64_t stage = rank / (layout.ranks() / layout.p);
  std::int64_t inside = rank % (layout.ranks() / layout.p);
  if (layout.pp_before_dp) {
    const std::int64_t copy = layout.t * layout.c;
    stage = rank / copy % layout.p;
    inside = rank % copy + rank / (copy * layout.p) * copy;
  }
  return {stage, inside % layout.t, inside % layout.etp, inside / layout.etp % layout.e};
}

/// A run of layers that a rank holds.
struct Chunk {
  std::int64_t number = 0;  ///< on its stage
  std::int64_t first = 0;
  std::int64_t layers = 0;
  bool is_first = false;
  bool is_last = false;
};

class Splitter {
 public:
  Splitter(const SafetensorsFile& checkpoint, const nlohmann::json& config, const MegatronLayout& layout,
           std::int64_t rank)
      : checkpoint_(checkpoint), config_(config), layout_(layout), place_(place_of(layout, rank)) {}

  SafetensorsFile split() {
    for (const Chunk& chunk : chunks()) add_chunk(chunk);
    return std::move(shard_);
  }

 private:
  const Tensor& get(const std::string& name) const { return checkpoint_.tensors.at(name); }
  bool has(const std::string& name) const { return checkpoint_.tensors.contains(name); }
  std::int64_t layers() const { return config_.at("num_hidden_layers"); }
  bool tied() const { return config_.value("tie_word_embeddings", false); }
  bool several_chunks() const { return layout_.stage_layers.size() > static_cast<std::size_t>(layout_.p); }

  std::int64_t experts() const {
    return config_.contains("num_experts") ? config_.at("num_experts") : config_.at("num_local_experts");
  }

  bool is_moe(std::int64_t layer) const {
    if (!config_.contains("moe_intermediate_size")) return false;
    const auto dense = config_.value("mlp_only_layers", std::vector<std::int64_t>{});
    const std::int64_t step = config_.value("decoder_sparse_step", 1);
    return (layer + 1) % step == 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
  }

  std::vector<Chunk> chunks() const {
    std::vector<std::int64_t> sizes = layout_.stage_layers;
    if (sizes.empty()) {
      sizes.assign(static_cast<std::size_t>(layout_.p), divide(layers(), layout_.p));
    }
    std::vector<Chunk> mine;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const auto number = static_cast<std::int64_t>(i);
      if (number % layout_.p == place_.stage) {
        mine.push_back({number / layout_.p, first, sizes[i], i == 0, i + 1 == sizes.size()});
      }
      first += sizes[i];
    }
    if (first != layers()) throw std::runtime_error("the stages are not the model");
    return mine;
  }

  void add_chunk(const Chunk& chunk) {
    prefix_ = layout_.names.wrappers;
    if (several_chunks() && layout_.names.chunk_prefix) {
      prefix_ = fmt::format("vp_stages.{}.{}", chunk.number, prefix_);
    }
    if (chunk.is_first) add("embedding.word_embeddings.weight", vocabulary("model.embed_tokens.weight"));
    for (std::int64_t i = 0; i < chunk.layers; ++i) {
      add_layer(chunk.first + i, layout_.names.global_numbers ? chunk.first + i : i);
    }
    if (chunk.layers > 0 && chunk.first + chunk.layers == layers()) {
      add("decoder.final_layernorm.weight", get("model.norm.weight"));
    }
    if (!chunk.is_last) return;
    if (!tied()) add("output_layer.weight", vocabulary("lm_head.weight"));
    if (tied() && layout_.p > 1) {
      const Tensor copy = vocabulary("model.embed_tokens.weight");
      constexpr char kStale = 0x5a;
      add("output_layer.weight", layout_.stale_copy ? filled(copy, kStale) : copy);
    }
  }

  void add(const std::string& name, const Tensor& tensor) { shard_.tensors[prefix_ + name] = tensor; }

  Tensor vocabulary(const std::string& name) const {
    const std::int64_t multiple = 128 * layout_.t;
    const std::int64_t size = get(name).shape.at(0);
    const std::int64_t padded =
        layout_.vocabulary_rows > 0 ? layout_.vocabulary_rows : (size + multiple - 1) / multiple * multiple;
    Tensor padding{get(name).dtype, {padded - size, get(name).shape.at(1)}, ""};
    padding.data.assign(
        get(name).data.size() / static_cast<std::size_t>(size) * static_cast<std::size_t>(padded - size),
        layout_.junk.value_or('\0'));
    return row_share(stacked({get(name), padding}), place_.tp, layout_.t);
  }

  void add_layer(std::int64_t layer, std::int64_t number) {
    const std::string from = fmt::format("model.layers.{}.", layer);
    const std::string to = fmt::format("decoder.layers.{}.", number);
    const MegatronNames& names = layout_.names;
    add(to + names.input_norm, get(from + "input_layernorm.weight"));
    add_attention(from + "self_attn.", to + "self_attention.");
    const Tensor& norm = get(from + "post_attention_layernorm.weight");
    if (is_moe(layer)) {
      add(to + names.moe_norm, norm);
      add_experts(from + "mlp.", to + "mlp.");
    } else {
      add(to + names.dense_norm, norm);
      add(to + "mlp.linear_fc1.weight", gate_up(from + "mlp.", "weight", place_.tp, layout_.t));
      add(to + "mlp.linear_fc2.weight",
          column_share(get(from + "mlp.down_proj.weight"), place_.tp, layout_.t));
      if (!has(from + "mlp.down_proj.bias")) return;
      add(to + "mlp.linear_fc1.bias", gate_up(from + "mlp.", "bias", place_.tp, layout_.t));
      add(to + "mlp.linear_fc2.bias", get(from + "mlp.down_proj.bias"));
    }
  }

  void add_attention(const std::string& from, const std::string& to) {
    const std::int64_t groups = config_.at("num_key_value_heads");
    for (const std::string kind : {"weight", "bias"}) {
      if (!has(from + "q_proj." + kind)) break;
      const Tensor qkv = interleaved(get(fmt::format("{}q_proj.{}", from, kind)),
                                     get(fmt::format("{}k_proj.{}", from, kind)),
                                     get(fmt::format("{}v_proj.{}", from, kind)), groups);
      add(fmt::format("{}linear_qkv.{}", to, kind), row_share(qkv, place_.tp, layout_.t));
    }
    add(to + "linear_proj.weight", column_share(get(from + "o_proj.weight"), place_.tp, layout_.t));
    // Added once, after the sum over the ranks: every rank has all of it.
    if (has(from + "o_proj.bias")) add(to + "linear_proj.bias", get(from + "o_proj.bias"));
    if (!has(from + "q_norm.weight")) return;
    add(to + "q_layernorm.weight", get(from + "q_norm.weight"));
    add(to + "k_layernorm.weight", get(from + "k_norm.weight"));
  }

  /// A rank's gate rows above its up rows.
  Tensor gate_up(const std::string& from, const std::string& kind, std::int64_t rank,
                 std::int64_t ranks) const {
    return stacked({row_share(get(from + "gate_proj." + kind), rank, ranks),
                    row_share(get(from + "up_proj." + kind), rank, ranks)});
  }

  void add_experts(const std::string& from, const std::string& to) {
    add(to + "router.weight", get(from + "gate.weight"));
    const std::int64_t local = divide(experts(), layout_.e);
    for (std::int64_t i = 0; i < local; ++i) {
      const std::int64_t expert = place_.ep * local + i;
      const std::string source = fmt::format("{}experts.{}.", from, expert);
      const std::int64_t number = layout_.names.global_numbers ? expert : i;
      const auto name = [&](const char* matrix) {
        return layout_.names.local_experts
                   ? fmt::format("{}experts.local_experts.{}.{}.weight", to, number, matrix)
                   : fmt::format("{}experts.{}.weight{}", to, matrix, number);
      };
      add(name("linear_fc1"), gate_up(source, "weight", place_.etp, layout_.etp));
      add(name("linear_fc2"), column_share(get(source + "down_proj.weight"), place_.etp, layout_.etp));
    }
  }

  const SafetensorsFile& checkpoint_;
  const nlohmann::json& config_;
  const MegatronLayout& layout_;
  Place place_;
  std::string prefix_;
  SafetensorsFile shard_;
};

void write_hdf5(const SafetensorsFile& shard, const std::string& path) {
  std::vector<DatasetSpec> specs;
  for (const auto& [name, tensor] : shard.tensors) {
    specs.push_back({name, dtype_from_safetensors(tensor.dtype).value(), Shape(std::span(tensor.shape))});
  }
  const auto file = create_hdf5(path, {}, specs);
  std::size_t index = 0;
  for (const auto& [name, tensor] : shard.tensors) {
    file->write(index++, 0, std::as_bytes(std::span(tensor.data)));
  }
  file->commit();
}

}  // namespace

std::vector<SafetensorsFile> trainer_shards(const SafetensorsFile& checkpoint, const nlohmann::json& config,
                                            const MegatronLayout& layout) {
  std::vector<SafetensorsFile> shards;
  for (std::int64_t rank = 0; rank < layout.ranks(); ++rank) {
    shards.push_back(Splitter(checkpoint, config, layout, rank).split());
  }
  return shards;
}

void write_trainer_shards(const std::vector<SafetensorsFile>& shards, const nlohmann::json& config,
                          const std::string& directory, const std::string& extension) {
  put_file(directory + "/config.json", config.dump());
  for (std::size_t rank = 0; rank < shards.size(); ++rank) {
    const std::string path = fmt::format("{}/trainer-{}{}", directory, rank, extension);
    if (extension == ".h5") {
      write_hdf5(shards[rank], path);
    } else {
      shards[rank].write(path);
    }
  }
}

SafetensorsFile read_tensors(const std::string& path) {
  if (path.ends_with(".safetensors")) return SafetensorsFile::read(path);
  const Checkpoint checkpoint = read_checkpoint(path);
  const CheckpointReader reader(checkpoint);
  SafetensorsFile file;
  for (const StoredTensor& stored : checkpoint.tensors) {
    const auto extents = stored.shape.extents();
    Tensor tensor{std::string(dtype_safetensors_name(stored.dtype)),
                  {extents.begin(), extents.end()},
                  std::string(static_cast<std::size_t>(stored.bytes()), '\0')};
    reader.read(stored, Box::whole(stored.shape), std::as_writable_bytes(std::span(tensor.data)));
    file.tensors[stored.name] = std::move(tensor);
  }
  return file;
}

}  // namespace weightcast::test_support
