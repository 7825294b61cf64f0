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
