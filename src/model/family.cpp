#include "model/family.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

struct Known {
  std::string_view architecture;
  std::string_view model_type;
  std::unique_ptr<Family> (*make)(const ModelConfig&);
};

constexpr std::array<Known, 24> kFamilies{{
    {"DeepseekV3ForCausalLM", "deepseek_v3", &make_deepseek_v3},
    {"DeepseekV3ForCausalLM", "kimi_k2", &make_deepseek_v3},
    {"DeepseekV32ForCausalLM", "deepseek_v32", &make_deepseek_v32},
    {"Gemma4ForCausalLM", "gemma4_text", &make_gemma4},
    {"Gemma4ForConditionalGeneration", "gemma4", &make_gemma4_wrapped},
    {"Glm4ForCausalLM", "glm4", &make_glm4},
    {"Glm4MoeForCausalLM", "glm4_moe", &make_glm4_moe},
    {"Glm4MoeLiteForCausalLM", "glm4_moe_lite", &make_glm4_moe_lite},
    {"GlmMoeDsaForCausalLM", "glm_moe_dsa", &make_glm_moe_dsa},
    {"GptOssForCausalLM", "gpt_oss", &make_gpt_oss},
    {"KimiK25ForConditionalGeneration", "kimi_k25", &make_kimi_k25},
    {"LlamaForCausalLM", "llama", &make_llama},
    {"MiniMaxM2ForCausalLM", "minimax_m2", &make_minimax_m2},
    {"MistralForCausalLM", "mistral", &make_mistral},
    {"NemotronHForCausalLM", "nemotron_h", &make_nemotron_h},
    {"Qwen2ForCausalLM", "qwen2", &make_qwen2},
    {"Qwen2MoeForCausalLM", "qwen2_moe", &make_qwen2_moe},
    {"Qwen3ForCausalLM", "qwen3", &make_qwen3},
    {"Qwen3MoeForCausalLM", "qwen3_moe", &make_qwen3_moe},
    {"Qwen3NextForCausalLM", "qwen3_next", &make_qwen3_next},
    {"Qwen3_5ForCausalLM", "qwen3_5_text", &make_qwen3_5},
    {"Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", &make_qwen3_5_moe},
    {"Qwen3_5ForConditionalGeneration", "qwen3_5", &make_qwen3_5_vl},
    {"Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", &make_qwen3_5_moe_vl},
}};

// In lower case, as texts are compared here.

/// What trainers put before the name of a class whose model they wrap.
constexpr std::array<std::string_view, 5> kWrapperClasses{"fsdp", "ddp", "replicate", "compiled", "gaudi"};

/// Classes of wrappers and of loaders, which say nothing of the model in them.
constexpr std::array<std::string_view, 10> kNoModels{
    "peftmodel",       "peftmodelforcausallm",    "fullyshardeddataparallel",
    "fsdpmodule",      "distributeddataparallel", "dataparallel",
    "optimizedmodule", "automodelforcausallm",    "autoligerkernelforcausallm",
    "deepspeedengine"};

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

const Known* of_type(const std::string& model_type) {
  std::string type = lower(model_type);
  std::replace(type.begin(), type.end(), '-', '_');
  const auto* const found = std::find_if(kFamilies.begin(), kFamilies.end(),
                                         [&](const Known& known) { return known.model_type == type; });
  return found == kFamilies.end() ? nullptr : found;
}

/// A class as names of it are compared: transformers writes `Kimi_K25` where the hub has `KimiK25`.
std::string plain_class(std::string_view name) {
  std::string plain = lower(name);
  std::erase(plain, '_');
  return plain;
}

/// Whether a class is a family's: bare, behind the module it is in, or as a trainer's wrapper calls it. Any
/// other beginning will do where the type says the same.
bool is_class_of(const Known& known, const std::string& name, const Known* type) {
  const std::string wrapped = plain_class(name);
  const std::string bare = plain_class(known.architecture);
  if (!wrapped.ends_with(bare)) return false;
  std::string_view before = std::string_view(wrapped).substr(0, wrapped.size() - bare.size());
  const auto* wrapper = kWrapperClasses.begin();
  while (wrapper != kWrapperClasses.end()) {
    wrapper = std::find_if(kWrapperClasses.begin(), kWrapperClasses.end(),
                           [&](std::string_view text) { return before.ends_with(text); });
    if (wrapper != kWrapperClasses.end()) before.remove_suffix(wrapper->size());
  }
  return before.empty() || before.ends_with('.') || type == &known;
}

std::string listed_types() {
  std::string list;
  for (const Known& known : kFamilies) list.append(list.empty() ? "" : ", ").append(known.model_type);
  return list;
}

/// How many characters must be put in, taken out or changed to make one text of the other.
std::size_t distance(std::string_view from, std::string_view to) {
  std::vector<std::size_t> row(to.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::size_t before = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < to.size(); ++j) {
      const std::size_t changed = before + (from[i] == to[j] ? 0 : 1);
      before = row[j + 1];
      row[j + 1] = std::min({changed, before + 1, row[j] + 1});
    }
  }
  return row.back();
}

/// The name of a known family that is most like another one.
std::string_view closest(std::string_view Known::*name, std::string_view to) {
  // No name is longer than this; what a config may say is.
  constexpr std::size_t kMost = 64;
  const std::string text = lower(to.substr(0, kMost));
  const auto far = [&](const Known& known) { return distance(text, lower(known.*name)); };
  const auto* const found = std::min_element(kFamilies.begin(), kFamilies.end(),
                                             [&](const Known& a, const Known& b) { return far(a) < far(b); });
  return found->*name;
}

/// For a config whose architectures name no class of a model.
const Known& known_type(const ModelConfig& config, const Known* type) {
  if (type != nullptr) return *type;
  if (config.model_type().empty()) {
    throw InputError(fmt::format(
        "{}: fields 'architectures' and 'model_type' are missing; write the model's model_type ({})",
        config.origin(), listed_types()));
  }
  throw InputError(fmt::format("{}: model_type '{}' is not supported; the closest that is supported is '{}'",
                               config.origin(), excerpt(config.model_type()),
                               closest(&Known::model_type, config.model_type())));
}

const Known& find_family(const ModelConfig& config) {
  const Known* const type = of_type(config.model_type());
  std::vector<const Known*> named;
  std::string_view other;
  for (const std::string& name : config.architectures()) {
    const auto* const known = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Known& family) {
      return is_class_of(family, name, type);
    });
    if (known != kFamilies.end()) {
      named.push_back(known);
    } else if (other.empty() &&
               std::find(kNoModels.begin(), kNoModels.end(), lower(name)) == kNoModels.end()) {
      other = name;
    }
  }
  if (named.empty() && other.empty()) return known_type(config, type);
  if (named.empty()) {
    throw InputError(
        fmt::format("{}: architecture {} is not supported; the closest that is supported is '{}'",
                    config.origin(), excerpt(other), closest(&Known::architecture, other)));
  }
  const auto is_type = [&](const Known* known) {
    return type != nullptr && known->architecture == type->architecture;
  };
  const auto second =
      std::find_if(named.begin(), named.end(), [&](const Known* known) { return known != named.front(); });
  if (config.model_type().empty() && second != named.end()) {
    throw InputError(fmt::format("{}: field 'architectures' names {} and {}; leave one of them",
                                 config.origin(), named.front()->architecture, (*second)->architecture));
  }
  if (config.model_type().empty()) return *named.front();
  if (std::any_of(named.begin(), named.end(), is_type)) return *type;
  throw InputError(
      fmt::format("{}: field 'architectures' names {} but model_type is '{}'; correct the one that is wrong",
                  config.origin(), named.front()->architecture, excerpt(config.model_type())));
}

[[noreturn]] void no_trainers(const TrainerLayout& layout) {
  throw UsageError(layout.option + ": trainer layouts of this model's family are not known; leave it out");
}

}  // namespace

std::vector<TrainerTensor> Family::trainer_dense(const TrainerLayout& layout, std::int64_t /*pp*/,
                                                 std::int64_t /*tp*/) const {
  no_trainers(layout);
}

std::vector<TrainerTensor> Family::trainer_experts(const TrainerLayout& layout, std::int64_t /*pp*/,
                                                   std::int64_t /*etp*/, std::int64_t /*ep*/) const {
  no_trainers(layout);
}

std::optional<std::string> Family::copy_of(std::string_view /*stored_name*/) const {
  return std::nullopt;
}

std::vector<TrainerTensor> trainer_tensors(const Family& family, const TrainerLayout& layout,
                                           std::int64_t rank) {
  const TrainerRank place = trainer_rank(layout, rank);
  std::vector<TrainerTensor> tensors = family.trainer_dense(layout, place.pp, place.tp);
  const std::vector<TrainerTensor> experts = family.trainer_experts(layout, place.pp, place.etp, place.ep);
  if (!experts.empty()) require_one_stage(layout);
  tensors.insert(tensors.end(), experts.begin(), experts.end());
  return tensors;
}

bool names_family(const ModelConfig& config) {
  const Known* const type = of_type(config.model_type());
  return type != nullptr || std::ranges::any_of(config.architectures(), [&](const std::string& name) {
           return std::ranges::any_of(kFamilies,
                                      [&](const Known& known) { return is_class_of(known, name, type); });
         });
}

std::unique_ptr<Family> make_family(const ModelConfig& config, const LeavesOut& leaves_out) {
  std::unique_ptr<Family> family = find_family(config).make(config);
  if (config.drafts() != Drafts::kLeftOut && !family->sends_drafts()) {
    throw UsageError(
        fmt::format("{}: {} describes no draft layers of a kind that is known here; leave it out",
                    config.drafts() == Drafts::kAlone ? "--target draft" : "--mtp include", config.origin()));
  }
  for (const UnsentPart& unsent : family->unsent()) {
    if (!leaves_out || !leaves_out(unsent.prefix)) throw InputError(unsent.line);
  }
  return family;
}

}  // namespace weightcast
