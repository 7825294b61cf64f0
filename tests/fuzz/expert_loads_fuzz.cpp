// Loads of experts, as weightcast balance reads them from a file: what is accepted can be balanced, and gives
// a whole map.

#include "fuzz/refusal.hpp"
#include "model/expert_balance.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  const std::string text = fuzz::text_of(data, size);
  fuzz::accept_or_refuse("loads.json", [&] {
    const ExpertLoads loads = parse_expert_loads(text, "loads.json");
    const BalanceShape shape{.slots = loads.experts + 2, .ranks = 1};
    const ExpertMap map = balance_experts(loads, shape);
    static_cast<void>(parse_expert_map(expert_map_text(map), "loads.json"));
    for (const double imbalance : imbalances(loads, map)) {
      if (!(imbalance >= 1)) fuzz::broken("no rank has less than the mean of one", text);
    }
  });
  return 0;
}
