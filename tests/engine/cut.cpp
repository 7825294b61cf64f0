#include "engine/cut.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

namespace weightcast::engine {
namespace {

/// Where a rank's piece of one dimension lies.
struct Range {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

Range rank_plan(std::int64_t total, std::int64_t rank, std::int64_t ranks) {
  return {rank * (total / ranks), total / ranks};
}

/// A vector counts as a matrix of one column, so that biases are cut like the rows of their weights.
std::int64_t columns(const Tensor& tensor) {
  return tensor.shape.dims() == 2 ? tensor.shape[1] : 1;
}

Range all_columns(const Tensor& tensor) {
  return {0, columns(tensor)};
}

Range all_rows(const Tensor& tensor) {
  return {0, tensor.shape[0]};
}

/// Appends a rectangle; rows past the tensor's end are zero.
void append(const Tensor& tensor, Range rows, Range cols, std::vector<float>& to) {
  for (std::int64_t row = rows.first; row < rows.first + rows.count; ++row) {
    for (std::int64_t col = cols.first; col < cols.first + cols.count; ++col) {
      const bool inside = row < tensor.shape[0];
      to.push_back(inside ? tensor.values[static_cast<std::size_t>(row * columns(tensor) + col)] : 0.0F);
    }
  }
}

/// Stacks rows of tensors that have equally many columns.
Tensor stack(std::initializer_list<std::pair<const Tensor*, Range>> pieces) {
  std::vector<float> values;
  std::int64_t rows = 0;
  const Tensor& model = *pieces.begin()->first;
  for (const auto& [tensor, range] : pieces) {
    append(*tensor, range, all_columns(*tensor), values);
    rows += range.count;
  }
  const Shape shape = model.shape.dims() == 2 ? Shape{rows, columns(model)} : Shape{rows};
  return {shape, std::move(values)};
}

Tensor cut_columns(const Tensor& tensor, Range cols) {
  Tensor result{Shape{tensor.shape[0], cols.count}, {}};
  append(tensor, {0, tensor.shape[0]}, cols, result.values);
  return result;
}

class Cutter {
 public:
  Cutter(const ModelConfig& config, const RankLayout& layout, const ParameterSource& checkpoint)
      : config_(config), layout_(layout), checkpoint_(checkpoint) {}

  std::map<std::string, Tensor> cut() {
    cut_vocabulary("model.embed_tokens.weight");
    if (!config_.tied_embeddings) cut_vocabulary("lm_head.weight");
    copy("model.norm.weight");
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      const std::string prefix = fmt::format("model.layers.{}.", layer);
      copy(prefix + "input_layernorm.weight");
      copy(prefix + "post_attention_layernorm.weight");
      switch (config_.attention[static_cast<std::size_t>(layer)]) {
        case AttentionKind::kGrouped:
          cut_attention(prefix + "self_attn.", prefix + config_.attention_module);
          break;
        case AttentionKind::kLatent:
          cut_latent_attention(prefix + "self_attn.");
          break;
        case AttentionKind::kDelta:
          cut_delta_net(prefix + "linear_attn.");
          break;
      }
      if (config_.interleaved_limit > 0) {
        cut_interleaved_experts(prefix + "mlp.");
      } else if (config_.sparse[static_cast<std::size_t>(layer)]) {
        cut_experts(prefix + "mlp.");
      } else {
        cut_mlp(prefix + "mlp.", config_.dense_width);
      }
    }
    return std::move(parts_);
  }

 private:
  void copy(const std::string& name) { copy(name, name); }
  void copy(const std::string& name, const std::string& to) { parts_[to] = checkpoint_.read(name); }

  void cut_vocabulary(const std::string& name) {
    const std::int64_t padded = (config_.vocab + 63) / 64 * 64;
    const Tensor whole = checkpoint_.read(name);
    parts_[name] = stack({{&whole, rank_plan(padded, layout_.tp_rank, layout_.tp_size)}});
  }

  /// `module` is what the engine calls what checkpoints call `prefix`.
  void cut_attention(const std::string& prefix, const std::string& module) {
    const std::int64_t dim = config_.head_dim;
    const Range heads = rank_plan(config_.heads, layout_.tp_rank, layout_.tp_size);
    // The key/value heads that this rank's query heads use: query head h uses head h / (heads / kv_heads).
    const std::int64_t queries = config_.heads / config_.kv_heads;
    const std::int64_t first = heads.first / queries;
    const std::int64_t last = (heads.first + heads.count - 1) / queries;
    const Range seen{heads.first * dim, heads.count * dim};
    const std::int64_t rows = (config_.attention_gate ? 2 : 1) * dim;  // of a query, and its gate
    const Range q{heads.first * rows, heads.count * rows};
    const Range kv{first * dim, (last - first + 1) * dim};
    const auto fuse = [&](const std::string& suffix) {
      const Tensor query = checkpoint_.read(prefix + "q_proj" + suffix);
      const Tensor key = checkpoint_.read(prefix + "k_proj" + suffix);
      const Tensor value = checkpoint_.read(prefix + "v_proj" + suffix);
      parts_[module + "qkv_proj" + suffix] = stack({{&query, q}, {&key, kv}, {&value, kv}});
    };
    fuse(".weight");
    if (config_.attention_bias) {
      fuse(".bias");
      copy(prefix + "o_proj.bias", module + "o_proj.bias");
    }
    parts_[module + "o_proj.weight"] = cut_columns(checkpoint_.read(prefix + "o_proj.weight"), seen);
    if (config_.head_norms) {
      copy(prefix + "q_norm.weight", module + "q_norm.weight");
      copy(prefix + "k_norm.weight", module + "k_norm.weight");
    }
    if (config_.attention_sinks) {
      const Tensor sinks = checkpoint_.read(prefix + "sinks");
      parts_[module + "sinks"] = stack({{&sinks, heads}});
    }
  }

  void cut_latent_attention(const std::string& prefix) {
    const LatentSizes& sizes = config_.latent;
    const Range heads = rank_plan(config_.heads, layout_.tp_rank, layout_.tp_size);
    const auto cut_heads = [&](const std::string& name, std::int64_t rows) {
      const Tensor whole = checkpoint_.read(prefix + name);
      parts_[prefix + name] = stack({{&whole, {heads.first * rows, heads.count * rows}}});
    };
    const std::string latent = prefix + "kv_a_proj_with_mqa.weight";
    const std::int64_t query_rows = sizes.nope_dim + sizes.rope_dim;
    if (sizes.query_rank > 0) {
      const Tensor queries = checkpoint_.read(prefix + "q_a_proj.weight");
      const Tensor kv = checkpoint_.read(latent);
      parts_[prefix + "fused_qkv_a_proj_with_mqa.weight"] =
          stack({{&queries, all_rows(queries)}, {&kv, all_rows(kv)}});
      copy(prefix + "q_a_layernorm.weight");
      cut_heads("q_b_proj.weight", query_rows);
    } else {
      copy(latent);
      cut_heads("q_proj.weight", query_rows);
    }
    copy(prefix + "kv_a_layernorm.weight");
    cut_heads("kv_b_proj.weight", sizes.nope_dim + sizes.value_dim);
    parts_[prefix + "o_proj.weight"] =
        cut_columns(checkpoint_.read(prefix + "o_proj.weight"),
                    {heads.first * sizes.value_dim, heads.count * sizes.value_dim});
  }

  void cut_delta_net(const std::string& prefix) {
    const DeltaSizes& sizes = config_.delta;
    const std::int64_t query_rows = sizes.key_heads * sizes.key_dim;
    const std::int64_t value_rows = sizes.value_heads * sizes.value_dim;
    const auto part = [&](std::int64_t rows, std::int64_t before) {
      Range range = rank_plan(rows, layout_.tp_rank, layout_.tp_size);
      range.first += before;
      return range;
    };
    const Range q = part(query_rows, 0);
    const Range k = part(query_rows, query_rows);
    const Range v = part(value_rows, 2 * query_rows);
    const Range heads = part(sizes.value_heads, 0);
    if (sizes.by_key_head) {
      const Tensor qkvz = checkpoint_.read(prefix + "in_proj_qkvz.weight");
      const Tensor ba = checkpoint_.read(prefix + "in_proj_ba.weight");
      parts_[prefix + "in_proj_qkvz.weight"] = stack({{&qkvz, part(qkvz.shape[0], 0)}});
      parts_[prefix + "in_proj_ba.weight"] = stack({{&ba, part(ba.shape[0], 0)}});
    } else {
      const Tensor qkv = checkpoint_.read(prefix + "in_proj_qkv.weight");
      const Tensor z = checkpoint_.read(prefix + "in_proj_z.weight");
      const Tensor b = checkpoint_.read(prefix + "in_proj_b.weight");
      const Tensor a = checkpoint_.read(prefix + "in_proj_a.weight");
      parts_[prefix + "in_proj_qkvz.weight"] =
          stack({{&qkv, q}, {&qkv, k}, {&qkv, v}, {&z, part(value_rows, 0)}});
      parts_[prefix + "in_proj_ba.weight"] = stack({{&b, heads}, {&a, heads}});
    }
    Tensor kernel = checkpoint_.read(prefix + "conv1d.weight");
    kernel.shape = {kernel.shape[0], sizes.kernel};
    Tensor cut = stack({{&kernel, q}, {&kernel, k}, {&kernel, v}});
    cut.shape = {cut.shape[0], 1, sizes.kernel};
    parts_[prefix + "conv1d.weight"] = std::move(cut);
    for (const std::string name : {"A_log", "dt_bias"}) {
      const Tensor whole = checkpoint_.read(prefix + name);
      parts_[prefix + name] = stack({{&whole, heads}});
    }
    copy(prefix + "norm.weight");
    parts_[prefix + "out_proj.weight"] =
        cut_columns(checkpoint_.read(prefix + "out_proj.weight"), part(value_rows, 0));
  }

  void cut_experts(const std::string& prefix) {
    copy(prefix + "gate.weight");
    if (config_.router.correction_bias) copy(prefix + "gate.e_score_correction_bias");
    if (config_.shared_width > 0) cut_mlp(prefix + config_.shared_module + ".", config_.shared_width);
    if (config_.shared_gate) copy(prefix + "shared_expert_gate.weight");
    const std::int64_t inside = layout_.tp_size / layout_.ep_size;
    const Range experts = rank_plan(config_.experts, layout_.ep_rank, layout_.ep_size);
    const Range inner = rank_plan(config_.expert_width, layout_.tp_rank % inside, inside);
    Tensor w13{Shape{experts.count, 2 * inner.count, config_.hidden}, {}};
    Tensor w2{Shape{experts.count, config_.hidden, inner.count}, {}};
    for (std::int64_t expert = experts.first; expert < experts.first + experts.count; ++expert) {
      const std::string name = fmt::format("{}experts.{}.", prefix, expert);
      const Tensor gate = checkpoint_.read(name + "gate_proj.weight");
      const Tensor up = checkpoint_.read(name + "up_proj.weight");
      const Tensor down = checkpoint_.read(name + "down_proj.weight");
      append(layout_.up_first ? up : gate, inner, all_columns(gate), w13.values);
      append(layout_.up_first ? gate : up, inner, all_columns(gate), w13.values);
      append(down, {0, config_.hidden}, inner, w2.values);
    }
    parts_[prefix + "experts.w13_weight"] = std::move(w13);
    parts_[prefix + "experts.w2_weight"] = std::move(w2);
  }

  /// Stored as [experts, in, out]; engines have the transposes.
  void cut_interleaved_experts(const std::string& prefix) {
    copy(prefix + "router.weight");
    copy(prefix + "router.bias");
    const std::int64_t inside = layout_.tp_size / layout_.ep_size;
    const std::int64_t inner_rank = layout_.tp_rank % inside;
    const Range experts = rank_plan(config_.experts, layout_.ep_rank, layout_.ep_size);
    const Range inner = rank_plan(config_.expert_width, inner_rank, inside);
    const Range both{2 * inner.first, 2 * inner.count};
    const auto turned = [&](const std::string& to, const std::string& from, Range rows, Range cols) {
      const Tensor stored = checkpoint_.read(prefix + "experts." + from);
      Tensor part{Shape{experts.count, cols.count, rows.count}, {}};
      for (std::int64_t e = experts.first; e < experts.first + experts.count; ++e) {
        for (std::int64_t col = cols.first; col < cols.first + cols.count; ++col) {
          for (std::int64_t row = rows.first; row < rows.first + rows.count; ++row) {
            const std::int64_t at = (e * stored.shape[1] + row) * stored.shape[2] + col;
            part.values.push_back(stored.values[static_cast<std::size_t>(at)]);
          }
        }
      }
      parts_[prefix + "experts." + to] = std::move(part);
    };
    const Range hidden{0, config_.hidden};
    turned("w13_weight", "gate_up_proj", hidden, both);
    turned("w2_weight", "down_proj", inner, hidden);
    const auto biases = [&](const std::string& to, const std::string& from, Range cols) {
      const Tensor stored = checkpoint_.read(prefix + "experts." + from);
      Tensor part{Shape{experts.count, cols.count}, {}};
      append(stored, experts, cols, part.values);
      parts_[prefix + "experts." + to] = std::move(part);
    };
    biases("w13_weight_bias", "gate_up_proj_bias", both);
    biases("w2_weight_bias", "down_proj_bias", hidden);
    // It counts once.
    if (inner_rank != 0) std::ranges::fill(parts_[prefix + "experts.w2_weight_bias"].values, 0.0F);
  }

  void cut_mlp(const std::string& prefix, std::int64_t width) {
    const Range inner = rank_plan(width, layout_.tp_rank, layout_.tp_size);
    const Tensor gate = checkpoint_.read(prefix + "gate_proj.weight");
    const Tensor up = checkpoint_.read(prefix + "up_proj.weight");
    parts_[prefix + "gate_up_proj.weight"] = stack({{&gate, inner}, {&up, inner}});
    parts_[prefix + "down_proj.weight"] = cut_columns(checkpoint_.read(prefix + "down_proj.weight"), inner);
  }

  const ModelConfig& config_;
  const RankLayout& layout_;
  const ParameterSource& checkpoint_;
  std::map<std::string, Tensor> parts_;
};

}  // namespace

std::map<std::string, Tensor> cut_rank(const ModelConfig& config, const RankLayout& layout,
                                       const ParameterSource& checkpoint) {
  return Cutter(config, layout, checkpoint).cut();
}

}  // namespace weightcast::engine
