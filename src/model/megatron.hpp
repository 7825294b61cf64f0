#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weightcast {

inline constexpr const char* kMegatronEmbedding = "embedding.word_embeddings.weight";
inline constexpr const char* kMegatronHead = "output_layer.weight";
/// Stands before the names of Hugging Face's module of linear attention, where trainers run that.
inline constexpr const char* kMegatronWholeLinearAttention = "self_attention.linear_attn.";

/// Rows that Megatron-Core gives a vocabulary by default (make-vocab-size-divisible-by 128).
std::int64_t megatron_padded_vocabulary(std::int64_t vocabulary, std::int64_t tp);

/// A name as a trainer's file has it, without what wrappers put in front.
struct UnwrappedName {
  std::string chunk;  ///< `vp_stages.1.`, or empty
  std::string name;   ///< without that and without `module.` and `language_model.`
};
UnwrappedName unwrap_name(std::string_view stored);

/// True for what trainers store beside weights (model/beside_weights.hpp).
bool trainer_may_ignore(std::string_view unwrapped);

/// Why a tensor of that name cannot be read, for forms that trainers use and this program does not know;
/// empty for any other.
std::string trainer_refusal(std::string_view unwrapped);

}  // namespace weightcast
