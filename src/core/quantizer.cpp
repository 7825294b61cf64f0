#include "core/quantizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

struct Named {
  std::string_view scheme;
  std::string_view rule;
  Quantizer quantizer;
};

// A scheme's rules lie together, its default first.
constexpr std::array<Named, 13> kQuantizers{{
    {"fp8-block", "slime", {QuantScheme::kFp8Block, QuantRule::kSlime}},
    {"fp8-block", "deepgemm", {QuantScheme::kFp8Block, QuantRule::kDeepGemm}},
    {"fp8-block", "flashinfer", {QuantScheme::kFp8Block, QuantRule::kFlashInfer}},
    {"fp8-block", "ue8m0", {QuantScheme::kFp8Block, QuantRule::kUe8m0}},
    {"fp8-tensor", "sglang", {QuantScheme::kFp8Tensor, QuantRule::kSglang}},
    {"fp8-tensor", "miles", {QuantScheme::kFp8Tensor, QuantRule::kMiles}},
    {"fp8-channel", "divide", {QuantScheme::kFp8Channel, QuantRule::kDivide}},
    {"mxfp8", "round-up", {QuantScheme::kMxfp8, QuantRule::kRoundUp}},
    {"nvfp4", "te", {QuantScheme::kNvfp4, QuantRule::kTe}},
    {"nvfp4", "unit", {QuantScheme::kNvfp4, QuantRule::kUnit}},
    {"mxfp4", "round-up", {QuantScheme::kMxfp4, QuantRule::kRoundUp}},
    {"mxfp4", "round-up-ties-down", {QuantScheme::kMxfp4, QuantRule::kRoundUpTiesDown}},
    {"mxfp4", "ocp", {QuantScheme::kMxfp4, QuantRule::kOcp}},
}};

const Named* find_scheme(std::string_view scheme) {
  const auto* found = std::find_if(kQuantizers.begin(), kQuantizers.end(),
                                   [&](const Named& row) { return row.scheme == scheme; });
  return found == kQuantizers.end() ? nullptr : found;
}

std::string name_of(const Named& row) {
  if (find_scheme(row.scheme) == &row) return std::string(row.scheme);
  return fmt::format("{}:{}", row.scheme, row.rule);
}

}  // namespace

Quantizer parse_quantizer(std::string_view text) {
  const std::size_t colon = text.find(':');
  const std::string_view scheme = text.substr(0, colon);
  const Named* first = find_scheme(scheme);
  if (first != nullptr && colon == std::string_view::npos) return first->quantizer;
  std::vector<std::string_view> names;
  for (const Named& row : kQuantizers) {
    if (first == nullptr) {
      if (find_scheme(row.scheme) == &row) names.push_back(row.scheme);
    } else if (row.scheme == scheme) {
      if (row.rule == text.substr(colon + 1)) return row.quantizer;
      names.push_back(row.rule);
    }
  }
  throw UsageError(fmt::format("--quantize {}: unknown{}; choose one of {}", excerpt(text),
                               first == nullptr ? "" : fmt::format(" variant of {}", excerpt(scheme)),
                               fmt::join(names, ", ")));
}

std::string quantizer_name(Quantizer quantizer) {
  for (const Named& row : kQuantizers) {
    if (row.quantizer == quantizer) return name_of(row);
  }
  throw InternalError("a quantizer of a scheme and a rule that do not belong together has no name");
}

std::vector<std::string> quantizer_names() {
  std::vector<std::string> names;
  for (const Named& row : kQuantizers) names.push_back(name_of(row));
  return names;
}

}  // namespace weightcast
