#include "model/family.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

#include "core/error.hpp"
#include "model/families/families.hpp"

namespace weightcast {

namespace {

struct Architecture {
  std::string_view name;
  std::unique_ptr<Family> (*make)(const ModelConfig&);
};

constexpr std::array<Architecture, 2> kArchitectures{{
    {"Qwen3ForCausalLM", &make_qwen3},
    {"Qwen3MoeForCausalLM", &make_qwen3_moe},
}};

}  // namespace

std::unique_ptr<Family> make_family(const ModelConfig& config) {
  std::vector<std::string_view> names;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == config.architecture()) return architecture.make(config);
    names.push_back(architecture.name);
  }
  throw InputError(fmt::format("{}: architecture {} is not supported; supported are {}", config.origin(),
                               config.architecture(), fmt::join(names, ", ")));
}

}  // namespace weightcast
