#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/quantizer.hpp"
#include "model/expert_placement.hpp"

namespace weightcast {

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

  /// Parameters are the catalog's tensors.
  bool canonical() const { return engine == Engine::kHf; }
  std::int64_t expert_tp() const { return tp / ep; }
  /// Ranks of one replica. A rank's coordinate in it is `pp rank × tp + tp rank`.
  std::int64_t replica_ranks() const { return pp * tp; }
  std::int64_t ranks() const { return replicas * replica_ranks(); }
  /// How experts lie, for people.
  const char* experts_text() const { return canonical() ? "as in the model" : moe_layout.c_str(); }
};

/// Where a rank stands: its replica, its stage, and its places among the ranks of the stage that cut MLPs,
/// attention heads, the list of experts, and the inner size of each expert.
struct EngineRank {
  std::int64_t replica = 0;
  std::int64_t pp = 0;
  std::int64_t tp = 0;
  std::int64_t attention_tp = 0;
  std::int64_t ep = 0;
  std::int64_t expert_tp = 0;
};

/// The place of inference rank `rank`: replica-major, then pp, then tp, and in that ep before the rank inside
/// the expert.
EngineRank engine_rank(const EngineLayout& layout, std::int64_t rank);

/// Consecutive layers.
struct EngineStage {
  std::int64_t first = 0;
  std::int64_t layers = 0;
};

/// The layers of stage `pp` of a model with `layers` layers, which `model` names in messages. Throws
/// UsageError when they cannot be divided evenly, or the layout's own numbers do not add up to them.
EngineStage engine_stage(const EngineLayout& layout, std::int64_t pp, std::int64_t layers,
                         const std::string& model);

/// Reads `tp=2,ep=2,pp=1,replicas=1` (absent = 1). Throws UsageError naming the piece that is wrong, among
/// them an ep that does not divide tp.
EngineLayout parse_engine_layout(std::string_view text, std::string_view moe_layout);

}  // namespace weightcast
