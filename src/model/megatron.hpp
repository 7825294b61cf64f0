#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/sharding.hpp"
#include "model/trainer.hpp"

namespace weightcast {

/// What Megatron-Core holds on one rank of a tensor-parallel (or expert-tensor-parallel) group, under the
/// names that it gives by default. `at` and `from` are what stands before a local and a canonical name.
/// Throws UsageError naming the option and the tensor when a size does not divide.
class MegatronParallel {
 public:
  /// `size_name` is what the size is called in error messages, beside `option`.
  MegatronParallel(const Catalog& catalog, std::int64_t size, std::int64_t rank, const std::string& option,
                   const std::string& size_name);

  /// Rows that Megatron-Core gives a vocabulary by default (make-vocab-size-divisible-by 128).
  static std::int64_t default_vocabulary(std::int64_t vocabulary, std::int64_t tp);

  TrainerTensor replicated(const std::string& name, const std::string& tensor,
                           std::vector<std::string> other_names = {}) const;

  /// A slice of an embedding or head of `padded` rows; throws InputError for fewer than the vocabulary.
  TrainerTensor vocabulary(const std::string& name, const std::string& tensor, std::int64_t padded) const;

  struct Attention {
    std::int64_t heads = 0;
    std::int64_t kv_heads = 0;
    std::int64_t head_dim = 0;
    bool bias = false;
  };
  /// Grouped-query attention with the norm before it: `AT linear_qkv`, `AT linear_proj`; canonical names
  /// `FROM input_layernorm`, `FROM self_attn.q_proj`, ….
  void add_attention(const std::string& at, const std::string& from, const Attention& attention,
                     std::vector<TrainerTensor>& tensors) const;

  /// A gated MLP: `AT linear_fc1.weight` of `FROM gate_proj`, `FROM up_proj`; `AT linear_fc2.weight`.
  void add_mlp(const std::string& at, const std::string& from, std::vector<TrainerTensor>& tensors) const;

  /// The same of expert `number` of those that the rank holds: `AT linear_fc1.weight{number}`.
  void add_expert(const std::string& at, std::int64_t number, const std::string& from,
                  std::vector<TrainerTensor>& tensors) const;

 private:
  TrainerTensor row_parallel(const std::string& name, const std::string& tensor) const;

  TensorParallel cut_;
};

inline constexpr const char* kMegatronEmbedding = "embedding.word_embeddings.weight";
inline constexpr const char* kMegatronHead = "output_layer.weight";

/// A name as a trainer's file has it, without what wrappers put in front.
struct UnwrappedName {
  std::string chunk;  ///< `vp_stages.1.`, or empty
  std::string name;   ///< without that and without `module.` and `language_model.`
};
UnwrappedName unwrap_name(std::string_view stored);

/// True for what trainers store beside weights (Transformer Engine's extra state, rotary tables).
bool trainer_may_ignore(std::string_view unwrapped);

}  // namespace weightcast
