#include "model/engine.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

namespace {

constexpr std::array<std::pair<Engine, std::string_view>, 3> kEngines{
    {{Engine::kSglang, "sglang"}, {Engine::kVllm, "vllm"}, {Engine::kHf, "hf"}}};

}  // namespace

std::string_view engine_name(Engine engine) {
  for (const auto& [one, name] : kEngines) {
    if (one == engine) return name;
  }
  throw InternalError("an engine without a name");
}

std::optional<Engine> find_engine(std::string_view name) {
  for (const auto& [engine, its_name] : kEngines) {
    if (its_name == name) return engine;
  }
  return std::nullopt;
}

EngineRank engine_rank(const EngineLayout& layout, std::int64_t rank) {
  const std::int64_t tp = rank % layout.tp;
  return {rank / layout.replica_ranks(),
          rank % layout.replica_ranks() / layout.tp,
          tp,
          tp % layout.attention_tp(),
          tp / layout.expert_tp(),
          tp % layout.expert_tp(),
          tp / layout.attention_tp()};
}

std::string EngineLayout::cut_text() const {
  return attention_dp == 1 ? fmt::format("tp {}, ep {}", tp, ep)
                           : fmt::format("attn_tp {} × attn_dp {}, ep {}", attention_tp(), attention_dp, ep);
}

std::string place_text(const EngineLayout& layout, const EngineRank& place) {
  const std::string stage = fmt::format("replica {} pp {}", place.replica, place.pp);
  return layout.attention_dp == 1 ? fmt::format("{} tp {} ep {}", stage, place.tp, place.ep)
                                  : fmt::format("{} attn_dp {} attn_tp {} ep {}", stage, place.attention_dp,
                                                place.attention_tp, place.ep);
}

EngineStage engine_stage(const EngineLayout& layout, std::int64_t pp, std::int64_t layers,
                         const std::string& model) {
  const std::vector<std::int64_t>& stages = layout.stage_layers;
  if (stages.empty()) {
    if (layers % layout.pp != 0) {
      throw UsageError(fmt::format(
          "{}: pp={} does not divide the layers of {} ({}); choose a divisor, or give the layers of each "
          "stage with --inference-stage-layers",
          layout.option, layout.pp, model, layers));
    }
    return {pp * (layers / layout.pp), layers / layout.pp};
  }
  const std::string given = fmt::format("--inference-stage-layers {}", fmt::join(stages, ","));
  if (static_cast<std::int64_t>(stages.size()) != layout.pp) {
    throw UsageError(
        fmt::format("{}: {} entries for pp={} stages; give one for each", given, stages.size(), layout.pp));
  }
  const std::int64_t sum = std::accumulate(stages.begin(), stages.end(), std::int64_t{0});
  if (sum != layers) {
    throw UsageError(
        fmt::format("{}: the stages add up to {} layers but {} has {}", given, sum, model, layers));
  }
  return {std::accumulate(stages.begin(), stages.begin() + pp, std::int64_t{0}),
          stages.at(static_cast<std::size_t>(pp))};
}

EngineLayout parse_engine_layout(std::string_view text, std::string_view moe_layout) {
  EngineLayout layout;
  layout.moe_layout = find_moe_layout(moe_layout).name();
  std::vector<std::string_view> given;
  std::int64_t attention_tp = 1;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::string_view item = text.substr(begin, text.find(',', begin) - begin);
    begin += item.size() + 1;
    const std::size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    std::int64_t* field = name == "tp"         ? &layout.tp
                          : name == "attn_tp"  ? &attention_tp
                          : name == "attn_dp"  ? &layout.attention_dp
                          : name == "ep"       ? &layout.ep
                          : name == "pp"       ? &layout.pp
                          : name == "replicas" ? &layout.replicas
                                               : nullptr;
    const std::string_view digits = equals == std::string_view::npos ? "" : item.substr(equals + 1);
    const char* end = digits.data() + digits.size();
    std::int64_t value = 0;
    const auto [rest, status] = std::from_chars(digits.data(), end, value);
    if (field == nullptr || status != std::errc() || rest != end || value < 1 || value > kMostRanks) {
      throw UsageError(
          fmt::format("--inference {}: cannot read '{}'; write for example tp=2,ep=2,pp=1,replicas=1 or "
                      "attn_tp=1,attn_dp=2,ep=2",
                      excerpt(text), excerpt(item)));
    }
    if (std::find(given.begin(), given.end(), name) != given.end()) {
      throw UsageError(fmt::format("--inference {}: '{}' gives {} a second time; write it once",
                                   excerpt(text), excerpt(item), name));
    }
    given.push_back(name);
    *field = value;
  }
  const auto has = [&](const char* name) { return std::ranges::find(given, name) != given.end(); };
  if (has("attn_tp") || has("attn_dp")) {
    if (has("tp")) {
      throw UsageError(
          fmt::format("--inference {}: attn_tp and attn_dp are in place of tp; leave tp out", excerpt(text)));
    }
    layout.tp = attention_tp * layout.attention_dp;
    if (layout.tp > kMostRanks) {
      throw UsageError(fmt::format("--inference {}: attn_tp·attn_dp is more than {} ranks; write fewer",
                                   excerpt(text), kMostRanks));
    }
  }
  if (layout.tp % layout.ep != 0) {
    throw UsageError(
        fmt::format("--inference {}: ep={} does not divide {}={}; experts are cut ep ways {}", excerpt(text),
                    layout.ep, layout.tp_name(), layout.tp,
                    layout.attention_dp == 1 ? "inside the tp group" : "over all ranks of a stage"));
  }
  return layout;
}

ActivationScales parse_activation_scales(std::string_view text) {
  ActivationScales scales;
  const char* const end = text.data() + text.size();
  const auto input = std::from_chars(text.data(), end, scales.input);
  const bool comma = input.ec == std::errc() && input.ptr != end && *input.ptr == ',';
  const auto inner = comma ? std::from_chars(input.ptr + 1, end, scales.inner) : input;
  if (!comma || inner.ec != std::errc() || inner.ptr != end || !(scales.input > 0) || !(scales.inner > 0) ||
      !std::isfinite(scales.input) || !std::isfinite(scales.inner)) {
    throw UsageError(
        fmt::format("--activation-scales {}: write two positive numbers, that of what goes into w13 and "
                    "that of what goes into w2, such as 0.5,0.25",
                    excerpt(text)));
  }
  return scales;
}

std::string to_string(const ActivationScales& scales) {
  return fmt::format("{},{}", scales.input, scales.inner);
}

}  // namespace weightcast
