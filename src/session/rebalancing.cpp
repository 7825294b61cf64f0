#include "session/rebalancing.hpp"

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "session/gpu.hpp"
#include "source/memory_source.hpp"

namespace weightcast {

namespace {

SessionOptions with_plan(SessionOptions options, const Rebalance& rebalance) {
  options.plan = [&rebalance] { return rebalance.plan; };
  options.rounds = rebalance.rounds;
  return options;
}

}  // namespace

Rebalancing::Rebalancing(Control& control, const Rebalance& rebalance, SessionOptions options)
    : session_(control, *rebalance.family, rebalance.plan.topology, rebalance.plan.limits,
               with_plan(std::move(options), rebalance)) {
  control.agreement.together([&] {
    const auto rank = static_cast<std::size_t>(control.rank());
    const HeldWeights& held = rebalance.held.at(rank);
    const Catalog& catalog = rebalance.family->catalog();
    std::vector<std::span<std::byte>> memory;
    for (std::size_t p = 0; p < session_.rank_plan().parameters.size(); ++p)
      memory.push_back(session_.parameter(p));
    if (!session_.memory().on_host()) {
      source_ = make_held_gpu_source(session_.plan(), catalog, control.rank(), held, std::move(memory));
      return;
    }
    std::vector<std::byte*> buffers;
    for (const std::span<std::byte> parameter : memory) buffers.push_back(parameter.data());
    source_ =
        std::make_unique<HeldSource>(session_.plan(), catalog, control.rank(), held, std::move(buffers));
  });
}

}  // namespace weightcast
