// Landing maps, as an engine's loader was learned, and the layout that they are for.

#include "fuzz/refusal.hpp"
#include "model/landing/landing_map.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  const std::string text = fuzz::text_of(data, size);
  fuzz::accept_or_refuse("map.json", [&] {
    const LandingMap map = parse_landing_map(text, "map.json");
    require_layout(map, layout_of(map));
  });
  return 0;
}
