#include "model/families/deepseek.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// GLM-4.7-Flash: DeepSeek-V3 with one dense layer, and a router that vLLM keeps in float32.
std::unique_ptr<Family> make_glm4_moe_lite(const ModelConfig& config) {
  return make_deepseek(config, {.router = Replicated::Type::kWidenedByVllm, .dense_layers = 1});
}

}  // namespace weightcast
