// A trainer whose memory has bfloat16 of tensors that are float32 sends what one with float32 sends.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "model_configs.hpp"
#include "plan/plan.hpp"
#include "source/memory_source.hpp"

namespace weightcast {

namespace {

/// All tensors of a catalog one behind the other in one buffer, those that may be narrower in `narrow` form.
struct TrainerMemory {
  TrainerMemory(const Catalog& catalog, bool narrow) {
    std::mt19937 random(18);
    std::vector<HeldBox> boxes;
    for (std::uint32_t number = 0; number < catalog.size(); ++number) {
      const Tensor& tensor = catalog[number];
      HeldBox box{number, Box::whole(tensor.shape), 0, std::ssize(bytes), 0};
      box.narrow = narrow && tensor.widened;
      const std::int64_t element = box.narrow ? 2 : dtype_bytes(tensor.dtype);
      box.pitch = tensor.shape.cols() * element;
      boxes.push_back(box);
      for (std::int64_t i = 0; i < tensor.shape.elements(); ++i) {
        // The upper half of a float32 is the bfloat16.
        const auto bits = static_cast<std::uint16_t>(random());
        const std::uint32_t word = element == 4 ? std::uint32_t{bits} << 16 : bits;
        const auto* const first = reinterpret_cast<const std::byte*>(&word);
        bytes.insert(bytes.end(), first, first + element);
      }
    }
    held = HeldWeights(std::move(boxes), catalog.size());
  }

  std::vector<std::byte> bytes;
  HeldWeights held;
};

struct Sent {
  std::vector<std::vector<std::byte>> buckets;
  std::vector<std::uint64_t> digests;
};

Sent sent_of(const Plan& plan, const Catalog& catalog, TrainerMemory& memory) {
  HeldSource source(plan, catalog, 0, memory.held, {memory.bytes.data()});
  Sent sent;
  sent.digests.resize(plan.digests());
  for (std::uint32_t number = 0; number < plan.buckets.size(); ++number) {
    std::vector<std::byte>& staging =
        sent.buckets.emplace_back(static_cast<std::size_t>(plan.buckets[number].bytes));
    source.finish_bucket(number, staging.data(), sent.digests);
    // What may be sent straight out of memory is not packed.
    for (std::uint32_t i = 0; i < plan.buckets[number].segments; ++i) {
      const std::uint32_t segment = plan.buckets[number].first_segment + i;
      if (const std::byte* const in_place = source.in_place(segment)) {
        std::memcpy(staging.data() + plan.segments[segment].offset, in_place,
                    static_cast<std::size_t>(plan.segment_bytes(plan.segments[segment])));
      }
    }
  }
  return sent;
}

TEST(NarrowSource, SendsWhatAWideOneSends) {
  for (const char* model : {"qwen3.5", "deepseek-v3", "nemotron-h"}) {
    const std::string path = fmt::format("{}/vllm/{}/config.json", WEIGHTCAST_TEST_DATA, model);
    const auto family = make_family(ModelConfig(text_of(path), path));
    const Catalog& catalog = family->catalog();
    Topology topology;
    topology.engine = parse_engine_layout("tp=2", "triton");
    const Plan plan = make_plan(*family, topology, Limits());
    TrainerMemory wide(catalog, false);
    TrainerMemory narrow(catalog, true);
    EXPECT_LT(narrow.bytes.size(), wide.bytes.size());
    const Sent expected = sent_of(plan, catalog, wide);
    const Sent sent = sent_of(plan, catalog, narrow);
    EXPECT_TRUE(sent.buckets == expected.buckets) << model;
    EXPECT_EQ(sent.digests, expected.digests) << model;
  }
}

}  // namespace

}  // namespace weightcast
