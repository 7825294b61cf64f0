#include "model/blocks/decoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <ranges>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "model/beside_weights.hpp"
#include "model/blocks/tensor_lists.hpp"

namespace weightcast {

namespace {

/// Where embedding, final norm and head stand.
Site outside() {
  return {};
}

// What names of layers begin with in engines.
constexpr std::string_view kEngineLayers = "model.layers.";

/// The layer whose tensor or parameter is called so, `before` in front of its number, of the model's or
/// behind them; nothing for all else.
std::optional<std::int64_t> layer_of(std::string_view name, std::string_view before) {
  if (!name.starts_with(before)) return std::nullopt;
  std::int64_t layer = 0;
  const char* const end = name.data() + name.size();
  const auto [rest, status] = std::from_chars(name.data() + before.size(), end, layer);
  if (status != std::errc() || rest == end || *rest != '.' || layer < 0) return std::nullopt;
  return layer;
}

/// An engine's name without what Decoder::rename() does to it.
std::string as_blocks_call_it(std::string_view parameter, const EngineNames& names) {
  if (parameter.starts_with(names.prefix)) parameter.remove_prefix(names.prefix.size());
  std::string name(parameter);
  for (const auto& [from, to] : std::ranges::reverse_view(names.replaced)) {
    const std::size_t at = name.find(to);
    if (at != std::string::npos) name.replace(at, to.size(), from);
  }
  return name;
}

}  // namespace

Decoder::Decoder(DecoderParts parts) : parts_(std::move(parts)) {
  require_plausible_sizes();
  list_tensors();
}

std::vector<Parameter> Decoder::parameters(const EngineLayout& layout, const EngineRank& rank) const {
  if (layout.canonical()) return canonical_parameters(catalog_);
  try {
    return cut_parameters(layout, rank);
  } catch (const InputError& error) {
    // What does not fit are types: of quantised tensors that do not go together, or that engines do not have
    // so.
    const std::string file = parts_.stored ? parts_.stored->place().file : parts_.origin;
    throw InputError(fmt::format("{}: {}", file, error.what()));
  }
}

std::vector<Parameter> Decoder::cut_parameters(const EngineLayout& layout, const EngineRank& rank) const {
  const Linears linears(catalog_, layout, stored_quantizer());
  const EngineCut cut(catalog_, layout, rank, linears);
  std::vector<Parameter> parameters;
  drafts_alone() ? add_shared_with_drafts(cut, parameters) : add_model(cut, parameters);
  if (parts_.drafts && rank.pp == layout.pp - 1) add_drafts(cut, parameters);
  rename(layout.engine, parameters);
  return parameters;
}

void Decoder::add_model(const EngineCut& cut, std::vector<Parameter>& parameters) const {
  const EngineLayout& layout = cut.layout;
  const EngineStage stage = engine_stage(layout, cut.rank.pp, parts_.layers, parts_.origin);
  const auto add_ends = [&](const LayerBlocks& ends) {
    for (const BlockPtr& block : ends) block->add_parameters(outside(), cut, parameters);
  };
  if (cut.rank.pp == 0) add_ends(first_blocks());
  for (std::int64_t layer = stage.first; layer < stage.first + stage.layers; ++layer) {
    const Site site = layer_site(layer);
    for (const BlockPtr& block : blocks(layer)) block->add_parameters(site, cut, parameters);
  }
  if (cut.rank.pp == layout.pp - 1) add_ends(last_blocks());
  for (Parameter& parameter : parameters) parameter.name.insert(0, names_of(layout.engine).prefix);
}

void Decoder::add_shared_with_drafts(const EngineCut& cut, std::vector<Parameter>& parameters) const {
  if (cut.layout.pp > 1) {
    throw UsageError(
        fmt::format("{}: pp={}: a draft model has no stages; write pp=1", cut.layout.option, cut.layout.pp));
  }
  parts_.embedding->add_parameters(outside(), cut, parameters);
  std::vector<Parameter> head;
  parts_.head->add_parameters(outside(), cut, head);
  for (std::int64_t draft = 0; draft < parts_.drafts->layers; ++draft) {
    const std::string name = parts_.drafts->sites(draft, cut.layout.engine).head;
    if (name.empty()) continue;
    // A head of its own in memory, also where the model has tied it to the embedding.
    parameters.push_back(head.empty() ? parameters.front() : head.front());
    parameters.back().name = name;
  }
  if (parameters.size() == 1) parameters.insert(parameters.end(), head.begin(), head.end());
}

void Decoder::add_drafts(const EngineCut& cut, std::vector<Parameter>& parameters) const {
  const DraftParts& drafts = *parts_.drafts;
  const auto engine = drafts.alone ? std::optional(cut.layout.engine) : std::nullopt;
  for (std::int64_t draft = 0; draft < drafts.layers; ++draft) {
    const DraftSites sites = drafts.sites(draft, engine);
    const auto add = [&](const LayerBlocks& blocks, const Site& site) {
      for (const BlockPtr& block : blocks) block->add_parameters(site, cut, parameters);
    };
    if (sites.joined) add(drafts.before, sites.before);
    add(drafts.body, sites.body);
    if (sites.joined) add(drafts.after, sites.after);
  }
}

Site Decoder::layer_site(std::int64_t layer) const {
  return {layer, fmt::format("{}{}.", parts_.layers_prefix, layer),
          fmt::format("{}{}.", kEngineLayers, layer), ""};
}

void Decoder::rename(Engine engine, std::vector<Parameter>& parameters) const {
  for (Parameter& parameter : parameters) {
    for (const auto& [from, to] : names_of(engine).replaced) {
      const std::size_t at = parameter.name.find(from);
      if (at != std::string::npos) parameter.name.replace(at, from.size(), to);
    }
  }
}

std::vector<TrainerTensor> Decoder::trainer_dense(const TrainerLayout& layout, std::int64_t pp,
                                                  std::int64_t tp) const {
  require_trainers(layout);
  const TensorParallel dense(catalog_, layout.tp, tp, layout.option, "the trainers' t");
  const TrainerCut cut{dense, layout.padded_vocabulary, layout.pp, layout.whole_linear_attention,
                       layout.plain_linear_norm};
  std::vector<TrainerTensor> tensors;
  for (const TrainerChunk& chunk : trainer_chunks(layout, pp, parts_.layers)) {
    const Site ends{Tensor::kNone, "", "", chunk.prefix};
    if (chunk.embedding) {
      for (const BlockPtr& block : first_blocks()) block->add_trainer_tensors(ends, cut, tensors);
    }
    for (std::int64_t layer = chunk.first; layer < chunk.first + chunk.layers; ++layer) {
      Site site = layer_site(layer);
      site.trainer = chunk.layer_prefix(layout, layer);
      for (const BlockPtr& block : blocks(layer)) block->add_trainer_tensors(site, cut, tensors);
    }
    if (chunk.final_norm) parts_.final_norm->add_trainer_tensors(ends, cut, tensors);
    if (chunk.head) parts_.head->add_trainer_tensors(ends, cut, tensors);
  }
  return tensors;
}

std::vector<TrainerTensor> Decoder::trainer_experts(const TrainerLayout& layout, std::int64_t pp,
                                                    std::int64_t etp, std::int64_t ep) const {
  require_trainers(layout);
  const TensorParallel inner(catalog_, layout.etp, etp, layout.option, "the trainers' t of ffn");
  const TrainerExpertCut cut{inner, layout.ep, ep, layout.global_numbers};
  std::vector<TrainerTensor> tensors;
  for (const TrainerChunk& chunk : trainer_chunks(layout, pp, parts_.layers)) {
    for (std::int64_t layer = chunk.first; layer < chunk.first + chunk.layers; ++layer) {
      Site site = layer_site(layer);
      site.trainer = chunk.layer_prefix(layout, layer);
      for (const BlockPtr& block : blocks(layer)) block->add_trainer_experts(site, cut, tensors);
    }
  }
  return tensors;
}

std::optional<StoredForm> Decoder::other_stored_form(const Tensor& tensor) const {
  if (tensor.layer == Tensor::kNone) return std::nullopt;
  const Site site = site_of(tensor.layer);
  for (const BlockPtr& block : blocks(tensor.layer)) {
    if (auto form = block->other_stored_form(site, tensor)) return form;
  }
  return std::nullopt;
}

bool Decoder::may_ignore(std::string_view stored_name) const {
  if (catalog_.find(stored_name)) return false;
  if (is_of_sent_drafts(stored_name)) {
    if (is_drafts_copy(stored_name)) return true;
  } else if (drafts_alone() || draft_layer_of(stored_name) || is_left_out(stored_name)) {
    return true;
  }
  return is_rotary_table(stored_name) || is_cache_scale(stored_name) ||
         (parts_.stored && is_activation_scale(stored_name));
}

bool Decoder::is_of_sent_drafts(std::string_view stored_name) const {
  return parts_.drafts && std::ranges::any_of(parts_.drafts->prefixes, [&](const std::string& prefix) {
           return stored_name.starts_with(prefix);
         });
}

std::optional<std::int64_t> Decoder::draft_layer_of(std::string_view stored_name) const {
  if (parts_.drafts) return std::nullopt;
  const auto layer = layer_of(stored_name, parts_.layers_prefix);
  const bool is_draft = layer && *layer >= parts_.layers && *layer < parts_.layers + parts_.draft_layers;
  return is_draft ? layer : std::nullopt;
}

std::optional<std::string> Decoder::ignored_beside(std::string_view stored_name) const {
  const auto layer = draft_layer_of(stored_name);
  if (!layer) return std::nullopt;
  return fmt::format("{}{}.eh_proj.weight", parts_.layers_prefix, *layer);
}

bool Decoder::is_left_out(std::string_view name) const {
  return std::ranges::any_of(parts_.left_out,
                             [&](const std::string& prefix) { return name.starts_with(prefix); });
}

bool Decoder::is_engines_own(std::string_view parameter) const {
  if (is_left_out(parameter)) return true;
  if (drafts_alone()) return false;
  return std::ranges::any_of(std::array{&parts_.vllm, &parts_.sglang}, [&](const EngineNames* names) {
    const std::string name = as_blocks_call_it(parameter, *names);
    const auto layer = layer_of(name, kEngineLayers);
    if (!layer || *layer >= parts_.layers) return false;
    return std::ranges::any_of(blocks(*layer), [&](const BlockPtr& block) {
      return block->is_engines_own(layer_site(*layer), name);
    });
  });
}

std::string Decoder::name_in_files(std::string_view canonical) const {
  for (const auto& [from, to] : parts_.in_files) {
    if (canonical.starts_with(from)) return to + std::string(canonical.substr(from.size()));
  }
  return std::string(canonical);
}

std::optional<std::string> Decoder::copy_of(std::string_view stored_name) const {
  if (!is_of_sent_drafts(stored_name) || !is_drafts_copy(stored_name))
    return parts_.head->copy_of(stored_name);
  return catalog_[stored_name.ends_with(kDraftsHead) ? head_ : 0].name;
}

LayerBlocks Decoder::first_blocks() const {
  LayerBlocks blocks{parts_.embedding};
  blocks.insert(blocks.end(), parts_.beside_embedding.begin(), parts_.beside_embedding.end());
  return blocks;
}

Site Decoder::site_of(std::int64_t layer) const {
  return layer < parts_.layers ? layer_site(layer)
                               : parts_.drafts.value().sites(layer - parts_.layers, std::nullopt).body;
}

const LayerBlocks& Decoder::blocks(std::int64_t layer) const {
  if (layer >= parts_.layers) return parts_.drafts.value().body;
  return parts_.kinds.at(parts_.kind_of ? parts_.kind_of(layer) : 0);
}

QuantizationPlace Decoder::quantization_place() const {
  return parts_.stored ? parts_.stored->place() : QuantizationPlace{};
}

std::vector<std::string> Decoder::left_out() const {
  std::vector<std::string> prefixes = parts_.left_out;
  for (std::int64_t draft = 0; !parts_.drafts && draft < parts_.draft_layers; ++draft)
    prefixes.push_back(layer_site(parts_.layers + draft).canonical);
  return prefixes;
}

std::optional<Quantizer> Decoder::stored_quantizer() const {
  return parts_.stored ? std::optional(parts_.stored->quantizer()) : std::nullopt;
}

void Decoder::require_trainers(const TrainerLayout& layout) const {
  if (!parts_.trainers_refused.empty()) {
    throw UsageError(fmt::format("{}: {}; name trainers that have Hugging Face's names, without it",
                                 layout.option, parts_.trainers_refused));
  }
  if (parts_.drafts) {
    throw UsageError(
        fmt::format("{}: what such trainers hold of draft layers is not known; leave --mtp and --target out, "
                    "or name trainers that have Hugging Face's names",
                    layout.option));
  }
  if (!parts_.stored) return;
  throw UsageError(
      fmt::format("{}: {} is a quantised model; trainers hold values", layout.option, parts_.origin));
}

void Decoder::require_plausible_sizes() const {
  TensorCount ends;
  for (const LayerBlocks& blocks : {first_blocks(), last_blocks()}) {
    for (const BlockPtr& block : blocks) block->list(outside(), ends);
  }
  std::vector<TensorCount> of_kind(parts_.kinds.size());
  for (std::size_t kind = 0; kind < of_kind.size(); ++kind) {
    for (const BlockPtr& block : parts_.kinds[kind]) block->list(outside(), of_kind[kind]);
  }
  const auto require = [&](double tensors, double elements) {
    require_plausible(parts_.sizes, tensors, elements * static_cast<double>(dtype_bytes(parts_.dtype)));
  };
  // Each layer has a tensor: a config may claim more layers than can be walked through.
  require(static_cast<double>(parts_.layers) + static_cast<double>(parts_.draft_layers), ends.elements());
  double tensors = ends.tensors();
  double elements = ends.elements();
  for (std::int64_t layer = 0; layer < parts_.layers; ++layer) {
    const TensorCount& count = of_kind.at(parts_.kind_of ? parts_.kind_of(layer) : 0);
    tensors += count.tensors();
    elements += count.elements();
  }
  if (parts_.drafts) {
    TensorCount count;
    for (const LayerBlocks& blocks : {parts_.drafts->before, parts_.drafts->body, parts_.drafts->after}) {
      for (const BlockPtr& block : blocks) block->list(outside(), count);
    }
    tensors += count.tensors() * static_cast<double>(parts_.drafts->layers);
    elements += count.elements() * static_cast<double>(parts_.drafts->layers);
  }
  require(tensors, elements);
}

void Decoder::list_tensors() {
  CatalogList list(catalog_, parts_.dtype, parts_.stored ? &*parts_.stored : nullptr);
  for (const BlockPtr& block : first_blocks()) block->list(outside(), list);
  for (std::int64_t layer = 0; !drafts_alone() && layer < parts_.layers; ++layer) {
    list.set_layer(layer);
    for (const BlockPtr& block : blocks(layer)) block->list(layer_site(layer), list);
  }
  list.set_layer(Tensor::kNone);
  if (!drafts_alone()) parts_.final_norm->list(outside(), list);
  const auto head = static_cast<std::uint32_t>(catalog_.size());
  parts_.head->list(outside(), list);
  if (head < catalog_.size()) head_ = head;
  for (std::int64_t draft = 0; parts_.drafts && draft < parts_.drafts->layers; ++draft) {
    list.set_layer(parts_.layers + draft);
    const DraftSites sites = parts_.drafts->sites(draft, std::nullopt);
    const auto add = [&](const LayerBlocks& blocks, const Site& site) {
      for (const BlockPtr& block : blocks) block->list(site, list);
    };
    if (sites.joined) add(parts_.drafts->before, sites.before);
    add(parts_.drafts->body, sites.body);
    if (sites.joined) add(parts_.drafts->after, sites.after);
  }
}

}  // namespace weightcast
