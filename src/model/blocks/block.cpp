#include "model/blocks/block.hpp"

#include <fmt/format.h>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// The ranks that cut the attention, or all of the stage.
TensorParallel cut_over(const Catalog& catalog, const EngineLayout& layout, const EngineRank& rank,
                        bool as_attention) {
  if (as_attention) {
    return {catalog, layout.attention_tp(), rank.attention_tp, layout.option, layout.attention_tp_name()};
  }
  return {catalog, layout.tp, rank.tp, layout.option, layout.tp_name()};
}

}  // namespace

EngineCut::EngineCut(const Catalog& of, const EngineLayout& how, const EngineRank& where, const Linears& with)
    : catalog(of),
      layout(how),
      rank(where),
      linears(with),
      attention(cut_over(of, how, where, true)),
      dense(cut_over(of, how, where, how.engine == Engine::kVllm)),
      embedding(attention),
      head(dense) {}

const TensorParallel& EngineCut::shared_experts(const std::string& module) const {
  // vLLM's sequence-parallel experts: some of its classes keep these whole then, some cut them.
  if (layout.engine == Engine::kVllm && layout.attention_dp > 1 && layout.attention_tp() > 1 &&
      layout.ep > 1) {
    throw UsageError(
        fmt::format("{}: attn_tp={} with attn_dp={} and ep={}: whether vLLM keeps {} whole or cuts it "
                    "depends on its class "
                    "of the model and its --all2all-backend, and is not known here; write attn_tp=1 or ep=1",
                    layout.option, layout.attention_tp(), layout.attention_dp, layout.ep, module));
  }
  return dense;
}

void Block::add_trainer_tensors(const Site& /*site*/, const TrainerCut& /*cut*/,
                                std::vector<TrainerTensor>& /*tensors*/) const {}

void Block::add_trainer_experts(const Site& /*site*/, const TrainerExpertCut& /*cut*/,
                                std::vector<TrainerTensor>& /*tensors*/) const {}

std::optional<StoredForm> Block::other_stored_form(const Site& /*site*/, const Tensor& /*tensor*/) const {
  return std::nullopt;
}

bool Block::is_engines_own(const Site& /*site*/, std::string_view /*parameter*/) const {
  return false;
}

std::optional<std::string> Block::copy_of(std::string_view /*stored_name*/) const {
  return std::nullopt;
}

}  // namespace weightcast
