// Expert maps, as jobs and plain commands read them from a file: what is accepted is written and read back
// alike.

#include "fuzz/refusal.hpp"
#include "model/expert_map.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  const std::string text = fuzz::text_of(data, size);
  fuzz::accept_or_refuse("map.json", [&] {
    const ExpertMap map = parse_expert_map(text, "map.json");
    const ExpertMap again = parse_expert_map(expert_map_text(map), "map.json");
    if (again.placement.experts_of_slots != map.placement.experts_of_slots ||
        again.placement.epoch != map.placement.epoch || again.experts != map.experts || again.ep != map.ep) {
      fuzz::broken("a map that was written is the map that is read", text);
    }
  });
  return 0;
}
