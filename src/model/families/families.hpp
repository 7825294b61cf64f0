#pragma once

#include <memory>

#include "model/family.hpp"

namespace weightcast {

std::unique_ptr<Family> make_glm4(const ModelConfig& config);
std::unique_ptr<Family> make_glm4_moe(const ModelConfig& config);
std::unique_ptr<Family> make_llama(const ModelConfig& config);
std::unique_ptr<Family> make_mistral(const ModelConfig& config);
std::unique_ptr<Family> make_qwen2(const ModelConfig& config);
std::unique_ptr<Family> make_qwen2_moe(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3(const ModelConfig& config);
std::unique_ptr<Family> make_qwen3_moe(const ModelConfig& config);

}  // namespace weightcast
