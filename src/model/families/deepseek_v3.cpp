#include "model/families/deepseek.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// DeepSeek-V3 and R1, Kimi-K2, Moonlight (whose queries are not latent).
std::unique_ptr<Family> make_deepseek_v3(const ModelConfig& config) {
  return make_deepseek(config, {});
}

}  // namespace weightcast
