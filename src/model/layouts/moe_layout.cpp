#include "model/layouts/moe_layout.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

/// `fp8-block`: what --quantize calls a scheme.
std::string scheme_name(QuantScheme scheme) {
  // The default rule of a scheme comes first, and has the scheme's name.
  for (const std::string& name : quantizer_names()) {
    if (parse_quantizer(name).scheme == scheme) return name;
  }
  throw InternalError("a scheme without a name");
}

bool takes_scheme(const MoeLayout& layout, QuantScheme scheme) {
  const TakenWeights taken = layout.takes();
  return std::find(taken.schemes.begin(), taken.schemes.end(), scheme) != taken.schemes.end();
}

/// `--quantize fp8-block, fp8-tensor`; of a layout that takes values too, `... or none`.
std::string taken_quantizers(const MoeLayout& layout) {
  const TakenWeights taken = layout.takes();
  if (taken.schemes.empty()) return "weights as in the model";
  std::vector<std::string> names;
  for (const QuantScheme scheme : taken.schemes) names.push_back(scheme_name(scheme));
  return fmt::format("--quantize {}{}", fmt::join(names, ", "), taken.values ? " or none" : "");
}

/// The names of the layouts that take weights of a scheme, or values.
std::string layouts_that_take(const std::optional<QuantScheme>& scheme) {
  std::vector<std::string> names;
  for (const MoeLayout* layout : moe_layouts()) {
    if (scheme ? takes_scheme(*layout, *scheme) : layout->takes().values) names.push_back(layout->name());
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

void require_taken(const MoeLayout& layout, const ExpertForm& form) {
  const TakenWeights taken = layout.takes();
  if (form.quantizer && !takes_scheme(layout, form.quantizer->scheme)) {
    throw UsageError(fmt::format("--moe-layout {}: takes {}, not {}; {} is taken by {}", layout.name(),
                                 taken_quantizers(layout), quantizer_name(*form.quantizer),
                                 scheme_name(form.quantizer->scheme),
                                 layouts_that_take(form.quantizer->scheme)));
  }
  if (form.quantizer) return;
  if (!taken.values) {
    throw UsageError(
        fmt::format("--moe-layout {}: takes {}, not weights as in the model; those are taken by {}",
                    layout.name(), taken_quantizers(layout), layouts_that_take({})));
  }
  if (taken.only_bf16 && form.dtype != DType::kBF16) {
    throw UsageError(fmt::format("--moe-layout {}: takes bfloat16 weights but the model is {}", layout.name(),
                                 dtype_name(form.dtype)));
  }
}

/// What would satisfy a rule of the part of one rank.
std::string inner_parts_that_fit(std::int64_t inner, std::int64_t multiple) {
  std::vector<std::int64_t> fit;
  for (std::int64_t parts = 1; parts <= inner / multiple; ++parts) {
    if (inner % parts == 0 && inner / parts % multiple == 0) fit.push_back(parts);
  }
  if (fit.empty()) return "no tp/ep does that, use another layout";
  return fmt::format("tp/ep may be {}", fmt::join(fit, ", "));
}

void require_size(const MoeLayout& layout, const ExpertForm& form, const SizeRule& rule) {
  const std::string who = fmt::format("--moe-layout {}{}", layout.name(),
                                      form.quantizer ? " with " + quantizer_name(*form.quantizer) : "");
  const auto refuse = [&](const std::string& size, const std::string& remedy) {
    throw UsageError(fmt::format("{}: {} must be a multiple of {} ({}); {}", who, size, rule.multiple,
                                 rule.reason, remedy));
  };
  switch (rule.size) {
    case SizeRule::Size::kInner:
      if (form.inner % rule.multiple == 0) return;
      refuse(fmt::format("the experts' inner size {}", form.inner), "use another layout");
      return;
    case SizeRule::Size::kInnerShare: {
      const std::int64_t share = form.inner / form.inner_parts;
      if (share % rule.multiple == 0) return;
      refuse(fmt::format("the experts' inner size of one rank ({} = {}/{})", share, form.inner,
                         form.inner_parts),
             inner_parts_that_fit(form.inner, rule.multiple));
      return;
    }
    case SizeRule::Size::kHidden:
      if (form.hidden % rule.multiple == 0) return;
      refuse(fmt::format("the hidden size {}", form.hidden), "use another layout");
      return;
  }
}

}  // namespace

void MoeLayout::require(const ExpertForm& form) const {
  require_taken(*this, form);
  for (const SizeRule& rule : rules(form)) require_size(*this, form, rule);
}

void MoeLayout::add_parameters(const Catalog& catalog, const LocalExperts& experts,
                               std::vector<Parameter>& parameters) const {
  const bool plain = experts.quantization == nullptr;
  const auto quantizer = plain ? std::nullopt : std::optional(experts.quantization->quantizer());
  add_experts(catalog, experts, matrices(quantizer), parameters);
}

std::span<const MoeLayout* const> moe_layouts() {
  static const std::array<const MoeLayout*, 9> layouts{
      &triton_moe_layout(),        &triton_kernels_moe_layout(),  &cutlass_moe_layout(),
      &trtllm_moe_layout(),        &trtllm_shuffled_moe_layout(), &deepgemm_moe_layout(),
      &deepgemm_mega_moe_layout(), &cute_dsl_moe_layout(),        &vllm_cpu_moe_layout()};
  return layouts;
}

const MoeLayout& find_moe_layout(std::string_view name) {
  std::vector<std::string> names;
  for (const MoeLayout* layout : moe_layouts()) {
    if (layout->name() == name) return *layout;
    names.push_back(layout->name());
  }
  throw UsageError(
      fmt::format("--moe-layout {}: unknown; choose one of {}", excerpt(name), fmt::join(names, ", ")));
}

std::vector<SizeRule> whole_blocks(const Quantizer& quantizer) {
  using enum SizeRule::Size;
  constexpr const char* kReason = "elements that share a scale stay together";
  std::vector<SizeRule> rules;
  const std::int64_t cols = block_cols(quantizer.scheme);
  if (cols > 0) rules.push_back({kInnerShare, cols, kReason});
  // A last block of rows and columns may be cut off by the matrix, one of a row alone may not.
  if (cols > 0 && block_rows(quantizer.scheme) == 1) rules.push_back({kHidden, cols, kReason});
  return rules;
}

std::vector<SizeRule> whole_loads(const ExpertForm& form) {
  using enum SizeRule::Size;
  constexpr std::int64_t kBytes = 16;
  constexpr const char* kReason = "rows are loaded 16 bytes at a time";
  const std::int64_t elements =
      form.quantizer ? kBytes * codes_per_byte(form.quantizer->scheme) : kBytes / dtype_bytes(form.dtype);
  return {{kInnerShare, elements, kReason}, {kHidden, elements, kReason}};
}

}  // namespace weightcast
