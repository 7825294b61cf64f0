#pragma once

#include <memory>

#include "model/family.hpp"

namespace weightcast {

std::unique_ptr<Family> make_deepseek_v3(const ModelConfig& config);
std::unique_ptr<Family> make_deepseek_v32(const ModelConfig& config);
std::unique_ptr<Family> make_gemma4(const ModelConfig& config);
std::unique_ptr<Family> make_gemma4_wrapped(const ModelConfig& config);
std::unique_ptr<Family> make_glm4(const ModelConfig& config);
std::unique_ptr<Family> make_glm4_moe(const ModelConfig& config);
std::unique_ptr<Family> make_glm4_moe_lite(const ModelConfig& config);
std::unique_ptr<Family> make_glm_moe_dsa(const ModelConfig& config);
std::unique_ptr<Family> make_gpt_oss(const ModelConfig& config);
std::unique_ptr<Family> make_kimi_k25(const ModelConfig& config);
std::unique_ptr<Family> make_llama(const ModelConfig& config);
std::unique_ptr<Family> make_minimax_m2(const ModelConfig& config);
std::unique_ptr<Family> make_mistral(const ModelConfig& config);
std::unique_ptr<Family> make_nemotron_h(const ModelConfig& config);
std::unique_ptr<Family> make_qwen2(const ModelConfig& config);
std::unique_ptr<Family> make_qwen2_moe(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3_5(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3_5_moe(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3_5_moe_vl(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3_5_vl(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3_moe(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3_next(const ModelConfig& config);

}  // namespace weightcast
