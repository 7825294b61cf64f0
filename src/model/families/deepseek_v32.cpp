#include "model/families/deepseek.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// DeepSeek-V3.2: V3 with an indexer in every layer.
std::unique_ptr<Family> make_deepseek_v32(const ModelConfig& config) {
  return make_deepseek(config, {.own_indexer = [](std::int64_t) { return true; }});
}

}  // namespace weightcast
