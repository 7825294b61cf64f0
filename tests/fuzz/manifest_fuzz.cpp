// What an exporter has published of itself, as any process of the user may have written it.

#include "fuzz/refusal.hpp"
#include "fuzz/written_file.hpp"
#include "live/manifest.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  static const fuzz::WrittenFile file("engine-0.json");
  file.write(fuzz::text_of(data, size));
  fuzz::accept_or_refuse(file.path(), [&] {
    const Manifest manifest = read_manifest(file.path());
    for (const LiveEntry& entry : manifest.entries) {
      if (entry.segment >= manifest.segments.size()) fuzz::broken("an entry lies in a segment", entry.name);
    }
    require_reachable(manifest);
  });
  return 0;
}
