#include <fmt/format.h>

#include <string>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/families/deepseek.hpp"
#include "model/families/families.hpp"

namespace weightcast {

/// Kimi-K2.5 and K2.6: DeepSeek-V3's layers as the text model of one that sees.
std::unique_ptr<Family> make_kimi_k25(const ModelConfig& config) {
  const ModelConfig text = config.text_model();
  const std::string& type = text.model_type();
  if (!type.empty() && type != "deepseek_v3" && type != "kimi_k2") {
    throw InputError(fmt::format(
        "{}: field 'model_type' is '{}', but the text model of {} is deepseek_v3, as transformers "
        "writes it, or kimi_k2; correct it",
        text.origin(), excerpt(type), config.architecture()));
  }
  return make_deepseek(text, {.prefix = "language_model.",
                              .left_out = {"vision_tower.", "mm_projector.", "model.vision_tower.",
                                           "model.mm_projector.", "multi_modal_projector."},
                              .unsent = unsent_towers(config, {{"vision_config", "vision_tower."}})});
}

}  // namespace weightcast
