#include "engine/cut.hpp"

#include <fmt/format.h>

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
      cut_attention(prefix + "self_attn.");
      if (config_.sparse[static_cast<std::size_t>(layer)]) {
        cut_experts(prefix + "mlp.");
      } else {
        cut_dense(prefix + "mlp.");
      }
    }
    return std::move(parts_);
  }

 private:
  void copy(const std::string& name) { parts_[name] = checkpoint_.read(name); }

  void cut_vocabulary(const std::string& name) {
    const std::int64_t padded = (config_.vocab + 63) / 64 * 64;
    const Tensor whole = checkpoint_.read(name);
    parts_[name] = stack({{&whole, rank_plan(padded, layout_.tp_rank, layout_.tp_size)}});
  }

  void cut_attention(const std::string& prefix) {
    const std::int64_t dim = config_.head_dim;
    const Range heads = rank_plan(config_.heads, layout_.tp_rank, layout_.tp_size);
    // The key/value heads that this rank's query heads use: query head h uses head h / (heads / kv_heads).
    const std::int64_t queries = config_.heads / config_.kv_heads;
    const std::int64_t first = heads.first / queries;
    const std::int64_t last = (heads.first + heads.count - 1) / queries;
    const Range q{heads.first * dim, heads.count * dim};
    const Range kv{first * dim, (last - first + 1) * dim};
    const auto fuse = [&](const std::string& suffix) {
      const Tensor query = checkpoint_.read(prefix + "q_proj" + suffix);
      const Tensor key = checkpoint_.read(prefix + "k_proj" + suffix);
      const Tensor value = checkpoint_.read(prefix + "v_proj" + suffix);
      parts_[prefix + "qkv_proj" + suffix] = stack({{&query, q}, {&key, kv}, {&value, kv}});
    };
    fuse(".weight");
    if (config_.attention_bias) {
      fuse(".bias");
      copy(prefix + "o_proj.bias");
    }
    parts_[prefix + "o_proj.weight"] = cut_columns(checkpoint_.read(prefix + "o_proj.weight"), q);
    copy(prefix + "q_norm.weight");
    copy(prefix + "k_norm.weight");
  }

  void cut_experts(const std::string& prefix) {
    copy(prefix + "gate.weight");
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

  void cut_dense(const std::string& prefix) {
    const Range inner = rank_plan(config_.dense_width, layout_.tp_rank, layout_.tp_size);
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
