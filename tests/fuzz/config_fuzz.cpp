// A model's config.json and, behind a zero byte, ModelOpt's hf_quant_config.json; and what the family makes
// of them.

#include "fuzz/refusal.hpp"
#include "model/family.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  const std::string input = fuzz::text_of(data, size);
  const std::size_t end = input.find('\0');
  fuzz::accept_or_refuse("", [&] {
    ModelConfig config(input.substr(0, end), "config.json");
    if (end != std::string::npos) config.add_modelopt(input.substr(end + 1), "hf_quant_config.json");
    static_cast<void>(config.text());
    for (const Drafts drafts : {Drafts::kLeftOut, Drafts::kIncluded, Drafts::kAlone}) {
      config.set_drafts(drafts);
      fuzz::accept_or_refuse("", [&] {
        const auto family = make_family(config);
        for (const std::int64_t ranks : {1, 2}) {
          fuzz::accept_or_refuse("", [&] {
            EngineLayout layout;
            layout.tp = layout.ep = ranks;
            for (std::int64_t rank = 0; rank < ranks; ++rank) {
              static_cast<void>(family->parameters(layout, engine_rank(layout, rank)));
            }
          });
        }
      });
    }
  });
  return 0;
}
