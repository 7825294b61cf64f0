#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "core/error.hpp"
#include "model/beside_weights.hpp"
#include "model/families/families.hpp"
#include "model/layouts/moe_layout.hpp"
#include "model/linears.hpp"
#include "model/megatron.hpp"
#include "model/sharding.hpp"
#include "model/stored_quantization.hpp"

namespace weightcast {

namespace {

/// Qwen3 (dense) and Qwen3-MoE: grouped-query attention with a norm per head, and in each layer either a
/// gated MLP or routed experts. Names and shapes are those of transformers' Qwen3 and Qwen3Moe classes.
class Qwen3 final : public Family {
 public:
  Qwen3(const ModelConfig& config, bool moe)
      : origin_(config.origin()),
        dtype_(config.dtype()),
        stored_(StoredQuantization::of(config)),
        hidden_(config.integer({"hidden_size"})),
        layers_(config.integer({"num_hidden_layers"})),
        heads_(config.integer({"num_attention_heads"})),
        kv_heads_(config.integer({"num_key_value_heads"})),
        head_dim_(config.integer_or({"head_dim"}, hidden_ / heads_)),
        vocabulary_(config.integer({"vocab_size"})),
        tied_(config.boolean_or({"tie_word_embeddings"}, false)),
        attention_bias_(config.boolean_or({"attention_bias"}, false)) {
    if (head_dim_ < 1) {
      throw InputError(origin_ + ": hidden_size is less than num_attention_heads and head_dim is missing");
    }
    if (heads_ % kv_heads_ != 0) {
      throw InputError(fmt::format("{}: num_attention_heads {} is no multiple of num_key_value_heads {}",
                                   origin_, heads_, kv_heads_));
    }
    if (moe) {
      experts_ = config.integer({"num_experts", "num_local_experts"});
      expert_inner_ = config.integer({"moe_intermediate_size"});
      sparse_step_ = config.integer_or({"decoder_sparse_step"}, 1);
      const std::vector<std::int64_t> dense = config.integers_or_empty({"mlp_only_layers"});
      dense_layers_.insert(dense.begin(), dense.end());
    }
    if (count_moe_layers() < layers_) inner_ = config.integer({"intermediate_size"});
    require_plausible_sizes();
    list_tensors();
  }

  const Catalog& catalog() const override { return catalog_; }

  std::vector<Parameter> parameters(const EngineLayout& layout, const EngineRank& rank) const override {
    require_divides(layout.option, "pp", layout.pp, "the layers of " + origin_, layers_);
    const TensorParallel tp(catalog_, layout.tp, rank.tp, layout.option);
    const Linears linears(catalog_, layout, stored_quantizer());
    std::vector<Parameter> parameters;
    const bool last = rank.pp == layout.pp - 1;
    if (rank.pp == 0 || (last && tied_)) parameters.push_back(tp.vocabulary(kEmbedding));
    const std::int64_t stage = layers_ / layout.pp;
    for (std::int64_t layer = rank.pp * stage; layer < (rank.pp + 1) * stage; ++layer) {
      add_attention(tp, linears, prefix(layer), parameters);
      parameters.push_back(tp.replicated(prefix(layer) + "post_attention_layernorm.weight"));
      if (is_moe_layer(layer)) {
        add_experts(tp, linears, layout, rank, prefix(layer) + "mlp.", parameters);
      } else {
        const std::string mlp = prefix(layer) + "mlp.";
        linears.add(tp.gate_up(mlp + "gate_up_proj.weight", mlp + "gate_proj.weight", mlp + "up_proj.weight"),
                    parameters);
        linears.add(tp.row_parallel(mlp + "down_proj.weight"), parameters);
      }
    }
    if (last) {
      parameters.push_back(tp.replicated(kFinalNorm));
      if (!tied_) parameters.push_back(tp.vocabulary(kHead));
    }
    return parameters;
  }

  std::vector<TrainerTensor> trainer_dense(const TrainerLayout& layout, std::int64_t pp,
                                           std::int64_t tp) const override {
    require_values(layout);
    const MegatronParallel cut(catalog_, layout.tp, tp, layout.option, "the trainers' t");
    const std::int64_t padded = layout.padded_vocabulary > 0
                                    ? layout.padded_vocabulary
                                    : MegatronParallel::default_vocabulary(vocabulary_, layout.tp);
    std::vector<TrainerTensor> tensors;
    for (const TrainerChunk& chunk : trainer_chunks(layout, pp, layers_)) {
      if (chunk.embedding) {
        tensors.push_back(cut.vocabulary(chunk.prefix + kMegatronEmbedding, kEmbedding, padded));
      }
      for (std::int64_t layer = chunk.first; layer < chunk.first + chunk.layers; ++layer) {
        add_trainer_layer(cut, chunk.layer_prefix(layout, layer), layer, tensors);
      }
      if (chunk.final_norm) {
        tensors.push_back(cut.replicated(chunk.prefix + "decoder.final_layernorm.weight", kFinalNorm));
      }
      if (chunk.head && (!tied_ || layout.pp > 1)) {
        tensors.push_back(cut.vocabulary(chunk.prefix + kMegatronHead, tied_ ? kEmbedding : kHead, padded));
        tensors.back().copy = tied_;
      }
    }
    return tensors;
  }

  std::vector<TrainerTensor> trainer_experts(const TrainerLayout& layout, std::int64_t pp, std::int64_t etp,
                                             std::int64_t ep) const override {
    require_values(layout);
    std::vector<TrainerTensor> tensors;
    if (experts_ == 0) return tensors;
    const MegatronParallel cut(catalog_, layout.etp, etp, layout.option, "the trainers' t of ffn");
    require_divides(layout.option, "the trainers' e", layout.ep, "the experts of " + origin_, experts_);
    const std::int64_t count = experts_ / layout.ep;
    for (const TrainerChunk& chunk : trainer_chunks(layout, pp, layers_)) {
      for (std::int64_t layer = chunk.first; layer < chunk.first + chunk.layers; ++layer) {
        if (!is_moe_layer(layer)) continue;
        for (std::int64_t expert = ep * count; expert < (ep + 1) * count; ++expert) {
          cut.add_expert(chunk.layer_prefix(layout, layer) + "mlp.experts.",
                         layout.global_numbers ? expert : expert - ep * count,
                         fmt::format("{}mlp.experts.{}.", prefix(layer), expert), tensors);
        }
      }
    }
    return tensors;
  }

  std::optional<StoredForm> other_stored_form(const Tensor& tensor) const override {
    return experts_ > 0 ? stacked_expert_form(tensor, experts_) : std::nullopt;
  }

  bool may_ignore(std::string_view stored_name) const override {
    if (catalog_.find(stored_name)) return false;
    return is_rotary_table(stored_name) || is_cache_scale(stored_name) ||
           (stored_ && is_activation_scale(stored_name));
  }

  std::optional<std::string> copy_of(std::string_view stored_name) const override {
    if (tied_ && stored_name == kHead) return kEmbedding;
    return std::nullopt;
  }

 private:
  static constexpr const char* kEmbedding = "model.embed_tokens.weight";
  static constexpr const char* kFinalNorm = "model.norm.weight";
  static constexpr const char* kHead = "lm_head.weight";

  /// Throws UsageError for trainers of a model whose checkpoints hold codes.
  void require_values(const TrainerLayout& layout) const {
    if (!stored_) return;
    throw UsageError(
        fmt::format("{}: {} is a quantised model; trainers hold values", layout.option, origin_));
  }

  static std::string prefix(std::int64_t layer) { return fmt::format("model.layers.{}.", layer); }

  bool is_moe_layer(std::int64_t layer) const {
    return experts_ > 0 && (layer + 1) % sparse_step_ == 0 && !dense_layers_.contains(layer);
  }

  /// Without a walk through the layers, of which a config may claim any number.
  std::int64_t count_moe_layers() const {
    if (experts_ == 0) return 0;
    return layers_ / sparse_step_ -
           std::count_if(dense_layers_.begin(), dense_layers_.end(), [&](std::int64_t layer) {
             return layer >= 0 && layer < layers_ && (layer + 1) % sparse_step_ == 0;
           });
  }

  void require_plausible_sizes() const {
    const auto hidden = static_cast<double>(hidden_);
    const auto layers = static_cast<double>(layers_);
    const auto moe_layers = static_cast<double>(count_moe_layers());
    const auto experts = static_cast<double>(experts_);
    const double attention =
        2 * static_cast<double>(heads_ + kv_heads_) * static_cast<double>(head_dim_) * hidden;
    const double dense = 3 * static_cast<double>(inner_) * hidden;
    const double sparse = experts * (3 * static_cast<double>(expert_inner_) + 1) * hidden;
    const double elements = 2 * static_cast<double>(vocabulary_) * hidden + layers * attention +
                            (layers - moe_layers) * dense + moe_layers * sparse;
    constexpr double kTensorsOfALayer = 15;  // with biases
    require_plausible(
        fmt::format("{}: num_hidden_layers {}, hidden_size {}, num_attention_heads {}, num_key_value_heads "
                    "{}, head_dim {}, vocab_size {}, intermediate_size {}, num_experts {} and "
                    "moe_intermediate_size {}",
                    origin_, layers_, hidden_, heads_, kv_heads_, head_dim_, vocabulary_, inner_, experts_,
                    expert_inner_),
        layers * kTensorsOfALayer + moe_layers * 3 * experts,
        elements * static_cast<double>(dtype_bytes(dtype_)));
  }

  void list_tensors() {
    catalog_.add(kEmbedding, dtype_, {vocabulary_, hidden_});
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      const std::string at = prefix(layer);
      catalog_.add(at + "input_layernorm.weight", dtype_, {hidden_});
      list_projection(at + "self_attn.q_proj", heads_ * head_dim_, hidden_);
      list_projection(at + "self_attn.k_proj", kv_heads_ * head_dim_, hidden_);
      list_projection(at + "self_attn.v_proj", kv_heads_ * head_dim_, hidden_);
      list_projection(at + "self_attn.o_proj", hidden_, heads_ * head_dim_);
      catalog_.add(at + "self_attn.q_norm.weight", dtype_, {head_dim_});
      catalog_.add(at + "self_attn.k_norm.weight", dtype_, {head_dim_});
      catalog_.add(at + "post_attention_layernorm.weight", dtype_, {hidden_});
      if (is_moe_layer(layer)) {
        catalog_.add(at + "mlp.gate.weight", dtype_, {experts_, hidden_});
        for (std::int64_t expert = 0; expert < experts_; ++expert) {
          list_mlp(fmt::format("{}mlp.experts.{}.", at, expert), expert_inner_);
        }
      } else {
        list_mlp(at + "mlp.", inner_);
      }
    }
    catalog_.add(kFinalNorm, dtype_, {hidden_});
    if (!tied_) catalog_.add(kHead, dtype_, {vocabulary_, hidden_});
  }

  void list_projection(const std::string& name, std::int64_t out, std::int64_t in) {
    list_weight(name, out, in);
    if (attention_bias_) catalog_.add(name + ".bias", dtype_, {out});
  }

  void list_mlp(const std::string& at, std::int64_t inner) {
    list_weight(at + "gate_proj", inner, hidden_);
    list_weight(at + "up_proj", inner, hidden_);
    list_weight(at + "down_proj", hidden_, inner);
  }

  void list_weight(const std::string& module, std::int64_t out, std::int64_t in) {
    const bool values = !stored_ || stored_->keeps_values(module);
    add_weight(catalog_, module + ".weight", dtype_, out, in, values ? std::nullopt : stored_quantizer());
  }

  std::optional<Quantizer> stored_quantizer() const {
    return stored_ ? std::optional(stored_->quantizer()) : std::nullopt;
  }

  void add_attention(const TensorParallel& tp, const Linears& linears, const std::string& at,
                     std::vector<Parameter>& parameters) const {
    parameters.push_back(tp.replicated(at + "input_layernorm.weight"));
    const std::string attention = at + "self_attn.";
    const auto qkv = [&](const std::string& kind) {
      return tp.fused_qkv(attention + "qkv_proj" + kind, attention + "q_proj" + kind,
                          attention + "k_proj" + kind, attention + "v_proj" + kind, heads_, kv_heads_,
                          head_dim_);
    };
    linears.add(qkv(".weight"), parameters);
    linears.add(tp.row_parallel(attention + "o_proj.weight"), parameters);
    if (attention_bias_) {
      parameters.push_back(qkv(".bias"));
      // Stored whole on every rank; the engine adds it once, on tp rank 0.
      parameters.push_back(tp.replicated(attention + "o_proj.bias"));
    }
    parameters.push_back(tp.replicated(attention + "q_norm.weight"));
    parameters.push_back(tp.replicated(attention + "k_norm.weight"));
  }

  void add_experts(const TensorParallel& tp, const Linears& linears, const EngineLayout& layout,
                   const EngineRank& rank, const std::string& at, std::vector<Parameter>& parameters) const {
    parameters.push_back(tp.replicated(at + "gate.weight"));
    require_divides(layout.option, "ep", layout.ep, "the experts of " + origin_, experts_);
    require_divides(layout.option, "tp/ep", layout.expert_tp(), "the inner size of " + at + "experts",
                    expert_inner_);
    const std::int64_t count = experts_ / layout.ep;
    const std::int64_t first = rank.tp / layout.expert_tp() * count;
    std::vector<ExpertTensors> slots;
    slots.reserve(static_cast<std::size_t>(count));
    for (std::int64_t expert = first; expert < first + count; ++expert) {
      const auto weight = [&](const char* name) {
        return catalog_.at(fmt::format("{}experts.{}.{}.weight", at, expert, name));
      };
      slots.push_back({weight("gate_proj"), weight("up_proj"), weight("down_proj")});
    }
    const MoeLayout& moe_layout = find_moe_layout(layout.moe_layout);
    std::vector<std::uint32_t> weights;
    for (const ExpertTensors& slot : slots) weights.insert(weights.end(), {slot.gate, slot.up, slot.down});
    const Quantization* const quantization = linears.quantization(weights);
    moe_layout.require({expert_inner_, layout.expert_tp(), hidden_, dtype_,
                        quantization ? std::optional(quantization->quantizer()) : std::nullopt});
    moe_layout.add_parameters(catalog_,
                              {at + "experts", slots, layout.expert_tp(), rank.tp % layout.expert_tp(),
                               quantization, layout.activations},
                              parameters);
  }

  /// A layer without its routed experts.
  void add_trainer_layer(const MegatronParallel& cut, const std::string& at, std::int64_t layer,
                         std::vector<TrainerTensor>& tensors) const {
    const std::string from = prefix(layer);
    cut.add_attention(at + "self_attention.", from, {heads_, kv_heads_, head_dim_, attention_bias_}, tensors);
    const std::string attention = from + "self_attn.";
    tensors.push_back(cut.replicated(at + "self_attention.q_layernorm.weight", attention + "q_norm.weight"));
    tensors.push_back(cut.replicated(at + "self_attention.k_layernorm.weight", attention + "k_norm.weight"));
    const std::string norm = from + "post_attention_layernorm.weight";
    const std::string plain_name = at + "pre_mlp_layernorm.weight";
    if (is_moe_layer(layer)) {
      tensors.push_back(cut.replicated(plain_name, norm));
      tensors.push_back(cut.replicated(at + "mlp.router.weight", from + "mlp.gate.weight"));
    } else {
      tensors.push_back(cut.replicated(at + "mlp.linear_fc1.layer_norm_weight", norm, {plain_name}));
      cut.add_mlp(at + "mlp.", from + "mlp.", tensors);
    }
  }

  std::string origin_;
  DType dtype_;
  std::optional<StoredQuantization> stored_;
  std::int64_t hidden_;
  std::int64_t layers_;
  std::int64_t heads_;
  std::int64_t kv_heads_;
  std::int64_t head_dim_;
  std::int64_t vocabulary_;
  bool tied_;
  bool attention_bias_;
  std::int64_t inner_ = 0;
  std::int64_t experts_ = 0;
  std::int64_t expert_inner_ = 0;
  std::int64_t sparse_step_ = 1;
  std::unordered_set<std::int64_t> dense_layers_;
  Catalog catalog_;
};

}  // namespace

std::unique_ptr<Family> make_qwen3(const ModelConfig& config) {
  return std::make_unique<Qwen3>(config, false);
}
std::unique_ptr<Family> make_qwen3_moe(const ModelConfig& config) {
  return std::make_unique<Qwen3>(config, true);
}

}  // namespace weightcast
