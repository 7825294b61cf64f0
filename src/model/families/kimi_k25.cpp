#include "model/families/deepseek.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// Kimi-K2.5 and K2.6: DeepSeek-V3's layers as the text model of one that sees.
std::unique_ptr<Family> make_kimi_k25(const ModelConfig& config) {
  const ModelConfig text = text_model_of(config, {"deepseek_v3", "kimi_k2"});
  return make_deepseek(text, {.prefix = "language_model.",
                              .towers = {"vision_tower.", "mm_projector.", "model.vision_tower.",
                                         "model.mm_projector.", "multi_modal_projector."},
                              .unsent = unsent_towers(config, {{"vision_config", "vision_tower."}})});
}

}  // namespace weightcast
