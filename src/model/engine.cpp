#include "model/engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <vector>

#include "core/error.hpp"
#include "model/layouts/moe_layout.hpp"

namespace weightcast {

EngineRank engine_rank(const EngineLayout& layout, std::int64_t rank) {
  return {rank / layout.replica_ranks(), rank % layout.replica_ranks() / layout.tp, rank % layout.tp};
}

EngineLayout parse_engine_layout(std::string_view text, std::string_view moe_layout) {
  EngineLayout layout;
  layout.moe_layout = find_moe_layout(moe_layout).name();
  std::vector<std::string_view> given;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::string_view item = text.substr(begin, text.find(',', begin) - begin);
    begin += item.size() + 1;
    const std::size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    std::int64_t* field = name == "tp"         ? &layout.tp
                          : name == "ep"       ? &layout.ep
                          : name == "pp"       ? &layout.pp
                          : name == "replicas" ? &layout.replicas
                                               : nullptr;
    const std::string_view digits = equals == std::string_view::npos ? "" : item.substr(equals + 1);
    const char* end = digits.data() + digits.size();
    constexpr std::int64_t kMostRanks = 1 << 20;
    std::int64_t value = 0;
    const auto [rest, status] = std::from_chars(digits.data(), end, value);
    if (field == nullptr || status != std::errc() || rest != end || value < 1 || value > kMostRanks) {
      throw UsageError(fmt::format(
          "--inference {}: cannot read '{}'; write for example tp=2,ep=2,pp=1,replicas=1", text, item));
    }
    if (std::find(given.begin(), given.end(), name) != given.end()) {
      throw UsageError(
          fmt::format("--inference {}: '{}' gives {} a second time; write it once", text, item, name));
    }
    given.push_back(name);
    *field = value;
  }
  if (layout.tp % layout.ep != 0) {
    throw UsageError(
        fmt::format("--inference {}: ep={} does not divide tp={}; experts are cut ep ways inside "
                    "the tp group",
                    text, layout.ep, layout.tp));
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
                    text));
  }
  return scales;
}

std::string to_string(const ActivationScales& scales) {
  return fmt::format("{},{}", scales.input, scales.inner);
}

}  // namespace weightcast
