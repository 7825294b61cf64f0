#include "model/families/drafts.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"
#include "model/blocks/draft_projection.hpp"
#include "model/families/common.hpp"

namespace weightcast {

namespace {

BlockPtr norm(const std::string& name, std::int64_t hidden) {
  return std::make_shared<Replicated>(Names{name, name, ""}, Shape{hidden});
}

Site site(std::int64_t layer, const std::string& canonical, const std::string& engine) {
  return {layer, canonical, engine, ""};
}

/// Throws InputError for more layers than any model has.
void require_few(std::int64_t layers, const ModelConfig& config) {
  constexpr std::int64_t kMost = 1000;
  if (layers <= kMost) return;
  throw InputError(fmt::format("{}: describes {} draft layers, and no model has more than {}; correct it",
                               config.origin(), layers, kMost));
}

/// Throws UsageError for more layers than an engine's draft models have.
void require_draft_class(Engine engine, std::int64_t layers, const std::string& origin) {
  if (engine == Engine::kSglang && layers > 1) {
    throw UsageError(fmt::format(
        "--target draft: SGLang's draft models have one layer, but {} describes {}; send them with "
        "the model (--mtp include), or name another engine",
        origin, layers));
  }
}

}  // namespace

std::optional<DraftParts> nextn_drafts(const ModelConfig& config, const DecoderParts& parts,
                                       std::int64_t hidden, LayerBlocks body) {
  if (config.drafts() == Drafts::kLeftOut || parts.draft_layers == 0) return std::nullopt;
  require_few(parts.draft_layers, config);
  DraftParts drafts;
  drafts.layers = parts.draft_layers;
  drafts.alone = config.drafts() == Drafts::kAlone;
  drafts.before = {norm("enorm.weight", hidden), norm("hnorm.weight", hidden),
                   std::make_shared<DraftProjection>("eh_proj.weight", hidden, DraftProjection::Cut::kNone)};
  drafts.body = std::move(body);
  drafts.after = {norm("shared_head.norm.weight", hidden)};
  const auto prefix = [first = parts.layers](std::int64_t draft) {
    return fmt::format("model.layers.{}.", first + draft);
  };
  for (std::int64_t draft = 0; draft < drafts.layers; ++draft) drafts.prefixes.push_back(prefix(draft));
  drafts.sites = [prefix, first = parts.layers, layers = drafts.layers, origin = config.origin()](
                     std::int64_t draft, std::optional<Engine> engine) -> DraftSites {
    const std::string own = prefix(draft);
    const std::int64_t layer = first + draft;
    const auto sites = [&](const std::string& joint, const std::string& inner, const std::string& head) {
      return DraftSites{site(layer, own, joint), site(layer, own, inner), site(layer, own, joint), true,
                        head};
    };
    if (!engine) return sites(own, own, "");
    require_draft_class(*engine, layers, origin);
    if (*engine == Engine::kSglang) return sites("model.", "model.decoder.", "");
    return sites(own, own + "mtp_block.", own + "shared_head.head.weight");
  };
  return drafts;
}

std::optional<DraftParts> mtp_drafts(const ModelConfig& config, const char* field, std::int64_t hidden,
                                     LayerBlocks body) {
  if (config.drafts() == Drafts::kLeftOut) return std::nullopt;
  const std::int64_t count = config.count_or({field}, 1);
  if (count == 0) return std::nullopt;
  require_few(count, config);
  DraftParts drafts;
  drafts.layers = count;
  drafts.alone = config.drafts() == Drafts::kAlone;
  drafts.before = {norm("pre_fc_norm_embedding.weight", hidden), norm("pre_fc_norm_hidden.weight", hidden),
                   std::make_shared<DraftProjection>("fc.weight", hidden, DraftProjection::Cut::kByVllm)};
  drafts.body = std::move(body);
  drafts.after = {norm("norm.weight", hidden)};
  drafts.prefixes = {"mtp."};
  drafts.sites = [first = config.integer({"num_hidden_layers"}), count, origin = config.origin()](
                     std::int64_t draft, std::optional<Engine> engine) -> DraftSites {
    if (engine) require_draft_class(*engine, count, origin);
    const std::int64_t layer = first + draft;
    const std::string model = engine ? "model." : "mtp.";
    const std::string before = engine == Engine::kSglang ? "" : model;
    const std::string number = fmt::format("layers.{}.", draft);
    return {site(layer, "mtp.", before), site(layer, "mtp." + number, model + number),
            site(layer, "mtp.", model), draft == 0, ""};
  };
  return drafts;
}

}  // namespace weightcast
