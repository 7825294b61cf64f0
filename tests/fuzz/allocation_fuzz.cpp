// Allocations as RL frameworks write them: `sglang:d4t2+megatron:(attn:d1p3t2c1|ffn:d1p3t1e2)`.

#include "fuzz/refusal.hpp"
#include "model/allocation.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weightcast;
  const std::string text = fuzz::text_of(data, size);
  fuzz::accept_or_refuse("--alloc", [&] { parse_allocation("--alloc", text); });
  fuzz::accept_or_refuse("--alloc", [&] { parse_inference_allocation("--alloc", text); });
  fuzz::accept_or_refuse("--alloc", [&] { parse_trainer_allocation("--alloc", text); });
  return 0;
}
