// Export maps, as job steps read them from a file or find them beside manifests.

#include "fuzz/refusal.hpp"
#include "model/export_map.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  const std::string text = fuzz::text_of(data, size);
  fuzz::accept_or_refuse("map.json", [&] { static_cast<void>(parse_export_map(text, "map.json")); });
  return 0;
}
