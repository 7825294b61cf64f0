#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/quantizer.hpp"
#include "model/expert_placement.hpp"

namespace weightcast {

/// More ranks than any layout has.
inline constexpr std::int64_t kMostRanks = 1 << 20;

/// The calibrated scales by which an engine divides what goes into w13 and into w2 of its experts.
struct ActivationScales {
  float input = 1;
  float inner = 1;

  friend bool operator==(const ActivationScales& a, const ActivationScales& b) = default;
};

/// Reads `0.5,0.25`. Throws UsageError naming --activation-scales unless both are positive numbers.
ActivationScales parse_activation_scales(std::string_view text);

/// The shortest text that is read as the same scales.
std::string to_string(const ActivationScales& scales);

/// Whose parameters these are: how an engine calls them, and whether it fuses and cuts them.
enum class Engine : std::uint8_t {
  kSglang,
  kVllm,  ///< fused and cut as SGLang's, experts one module deeper
  kHf,    ///< a Hugging Face module: the catalog's tensors, whole and by their own names
};

/// `sglang`, `vllm` or `hf`.
std::string_view engine_name(Engine engine);

/// The engine of that name, or nothing.
std::optional<Engine> find_engine(std::string_view name);

/// How the inference engine cuts a model, as `--inference tp=2,ep=2,pp=1,replicas=1` says it.
/// `ep` divides `tp`: experts are cut `ep` ways, each expert's inner size `tp/ep` ways.
/// With data-parallel attention, `attn_tp=1,attn_dp=8,ep=8`, `tp` is attn_tp·attn_dp: all ranks of a stage.
struct EngineLayout {
  Engine engine = Engine::kSglang;
  std::int64_t tp = 1;
  std::int64_t ep = 1;
  std::int64_t pp = 1;
  std::int64_t replicas = 1;
  std::vector<std::int64_t> stage_layers = {};  ///< of each stage; empty: all equal
  ExpertPlacement experts = {};
  std::string moe_layout = "triton";
  std::optional<Quantizer> quantizer = {};  ///< of linear layers and experts; none: as in the model
  ActivationScales activations = {};        ///< in what kernels multiply results with
  std::string landing = {};                 ///< the hash of the map in place of a family's rules, if any
  std::string option = "--inference";       ///< what to change, in error messages
  std::int64_t attention_dp = 1;            ///< how often a stage has the whole attention; divides tp

  /// Parameters are the catalog's tensors.
  bool canonical() const { return engine == Engine::kHf; }
  std::int64_t expert_tp() const { return tp / ep; }
  /// Ranks that cut the attention.
  std::int64_t attention_tp() const { return tp / attention_dp; }
  /// What options call the ranks of a stage and those that cut the attention.
  const char* tp_name() const { return attention_dp == 1 ? "tp" : "attn_tp·attn_dp"; }
  const char* expert_tp_name() const { return attention_dp == 1 ? "tp/ep" : "attn_tp·attn_dp/ep"; }
  const char* attention_tp_name() const { return attention_dp == 1 ? "tp" : "attn_tp"; }
  /// How the ranks of a stage cut it, for people: `tp 4, ep 2` or `attn_tp 2 × attn_dp 4, ep 8`.
  std::string cut_text() const;
  /// Ranks of one replica. A rank's coordinate in it is `pp rank × tp + tp rank`.
  std::int64_t replica_ranks() const { return pp * tp; }
  std::int64_t ranks() const { return replicas * replica_ranks(); }
  /// How experts lie, for people.
  const char* experts_text() const { return canonical() ? "as in the model" : moe_layout.c_str(); }
};

/// Where a rank stands: its replica, its stage, its number in that, its places among the ranks of the stage
/// that cut attention heads, the list of experts, and the inner size of each expert, and which of the whole
/// attentions it has a part of.
struct EngineRank {
  std::int64_t replica = 0;
  std::int64_t pp = 0;
  std::int64_t tp = 0;
  std::int64_t attention_tp = 0;
  std::int64_t ep = 0;
  std::int64_t expert_tp = 0;
  std::int64_t attention_dp = 0;
};

/// The place of inference rank `rank`: replica-major, then pp, then tp, and in that ep before the rank inside
/// the expert, attention_dp before attention_tp.
EngineRank engine_rank(const EngineLayout& layout, std::int64_t rank);

/// For people: `replica 0 pp 0 tp 3 ep 1` or `replica 0 pp 0 attn_dp 1 attn_tp 1 ep 3`.
std::string place_text(const EngineLayout& layout, const EngineRank& place);

/// Consecutive layers.
struct EngineStage {
  std::int64_t first = 0;
  std::int64_t layers = 0;
};

/// The layers of stage `pp` of a model with `layers` layers, which `model` names in messages. Throws
/// UsageError when they cannot be divided evenly, or the layout's own numbers do not add up to them.
EngineStage engine_stage(const EngineLayout& layout, std::int64_t pp, std::int64_t layers,
                         const std::string& model);

/// Reads `tp=2,ep=2,pp=1,replicas=1` (absent = 1), or `attn_tp=2,attn_dp=4` in place of tp. Throws UsageError
/// naming the piece that is wrong, among them an ep that does not divide tp or attn_tp·attn_dp.
EngineLayout parse_engine_layout(std::string_view text, std::string_view moe_layout);

}  // namespace weightcast
