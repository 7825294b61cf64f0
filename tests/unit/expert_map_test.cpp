// Maps of experts: what is written is read again, and what is refused.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/expert_map.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

constexpr const char* kRemedy = "; write the map anew with weightcast balance";

/// Two layers of three experts in four slots of two ranks.
json sound() {
  return {{"expert_map", 1},
          {"epoch", 7},
          {"layers", 2},
          {"experts", 3},
          {"slots", 4},
          {"ep", 2},
          {"experts_of_slots", {{2, 0, 1, 0}, {0, 1, 2, 2}}}};
}

std::string refusal(const std::string& text) {
  try {
    parse_expert_map(text, "map.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ExpertMaps, AreReadAsTheyAreWritten) {
  const ExpertMap map = parse_expert_map(sound().dump(), "map.json");
  EXPECT_EQ(map.origin, "map.json");
  EXPECT_EQ(map.layers(), 2);
  EXPECT_EQ(map.experts, 3);
  EXPECT_EQ(map.slots, 4);
  EXPECT_EQ(map.ep, 2);
  EXPECT_EQ(map.placement.epoch, 7);
  EXPECT_EQ(map.placement.experts_on(0, 2, 1, 3, "o"), (std::vector<std::int64_t>{1, 0}));
  const std::string text = expert_map_text(map);
  EXPECT_EQ(text,
            "{\n  \"expert_map\": 1,\n  \"epoch\": 7,\n  \"layers\": 2,\n  \"experts\": 3,\n  \"slots\": 4,\n"
            "  \"ep\": 2,\n  \"experts_of_slots\": [\n    [2, 0, 1, 0],\n    [0, 1, 2, 2]\n  ]\n}\n");
  EXPECT_TRUE(text.starts_with(kExpertMapBeginning));
  EXPECT_EQ(json::parse(text), sound());
}

TEST(ExpertMaps, TheFirstOneRepeatsTheExpertsInOrder) {
  const ExpertMap map = first_expert_map(2, 3, 8, 4);
  const std::vector<std::int64_t> layer{0, 1, 2, 0, 1, 2, 0, 1};
  EXPECT_EQ(map.placement.experts_of_slots, (std::vector{layer, layer}));
  EXPECT_EQ(map.placement.epoch, 0);
  EXPECT_EQ(parse_expert_map(expert_map_text(map), "x").placement.experts_of_slots,
            map.placement.experts_of_slots);
}

struct Mutant {
  const char* name;
  std::function<void(json&)> change;
  std::string line;  ///< that refuses it, without file and remedy
};

const std::vector<Mutant>& mutants() {
  static const auto slots = [](json& m, int layer) -> json& { return m["experts_of_slots"][layer]; };
  static const std::vector<Mutant> all{
      {"no_format", [](json& m) { m.erase("expert_map"); }, ": 'expert_map' is missing"},
      {"other_format", [](json& m) { m["expert_map"] = 2; },
       ": 'expert_map' is another format than 1, which this version reads"},
      {"no_epoch", [](json& m) { m.erase("epoch"); }, ": 'epoch' is missing"},
      {"negative_epoch", [](json& m) { m["epoch"] = -1; }, ": 'epoch' is no whole number of at least 0"},
      {"huge_epoch", [](json& m) { m["epoch"] = INT64_MAX; }, ": 'epoch' is not below 9007199254740992"},
      {"no_layers", [](json& m) { m["layers"] = 0; }, ": 'layers' is no whole number of at least 1"},
      {"one_layer_missing", [](json& m) { m["experts_of_slots"].erase(1); },
       ": 'experts_of_slots' has 1 layers, but 'layers' is 2"},
      {"huge_layers", [](json& m) { m["layers"] = INT64_MAX; },
       ": 'experts_of_slots' has 2 layers, but 'layers' is 9223372036854775807"},
      {"fractional_experts", [](json& m) { m["experts"] = 2.5; },
       ": 'experts' is no whole number of at least 1"},
      {"more_experts_than_slots", [](json& m) { m["experts"] = 5; }, ": 'slots' is 4, too few for 5 experts"},
      {"ep_that_does_not_divide", [](json& m) { m["ep"] = 3; },
       ": 'ep' is 3, which does not divide the 4 slots of a layer"},
      {"huge_slots", [](json& m) { m["slots"] = INT64_MAX - 1; },
       ": 'slots' is 9223372036854775806: with 2 layers more than 16777216 together"},
      {"other_slots", [](json& m) { m["slots"] = 6; }, ": layer 0: has 4 slots, but 'slots' is 6"},
      {"slot_too_many", [](json& m) { slots(m, 1).push_back(0); },
       ": layer 1: has 5 slots, but 'slots' is 4"},
      {"object_of_layers", [](json& m) { m["experts_of_slots"] = json::object(); },
       ": 'experts_of_slots' is no list"},
      {"layer_that_is_no_list", [](json& m) { slots(m, 1) = 4; },
       ": layer 1: is no list of the experts in its slots"},
      {"unknown_expert", [](json& m) { slots(m, 1)[2] = 3; },
       ": layer 1, slot 2: holds 3, which is no expert: 'experts' is 3, and the first is expert 0"},
      {"empty_slot", [](json& m) { slots(m, 0)[3] = -1; },
       ": layer 0, slot 3: holds -1, which is no expert: 'experts' is 3, and the first is expert 0"},
      {"expert_that_rings", [](json& m) { slots(m, 0)[3] = "\a"; },
       ": layer 0, slot 3: holds \"\\u0007\", which is no expert: 'experts' is 3, and the first is expert 0"},
      {"expert_without_slot", [](json& m) { slots(m, 1)[1] = 0; },
       ": layer 1: none of its 4 slots holds expert 1"},
  };
  return all;
}

class ExpertMapMutants : public ::testing::TestWithParam<Mutant> {};

TEST_P(ExpertMapMutants, AreRefusedInOneLine) {
  json map = sound();
  GetParam().change(map);
  EXPECT_EQ(refusal(map.dump()), "map.json" + GetParam().line + kRemedy);
}

INSTANTIATE_TEST_SUITE_P(All, ExpertMapMutants, ::testing::ValuesIn(mutants()),
                         [](const auto& mutant) { return mutant.param.name; });

TEST(ExpertMaps, OtherTextsAreRefused) {
  EXPECT_EQ(refusal("[[0, 1]]"), "map.json: no JSON object; it must begin with '{'");
  EXPECT_EQ(refusal(R"({"ep": 1, "ep": 2})"),
            "map.json: 'ep' occurs twice in one object; remove one of them");
}

}  // namespace

}  // namespace weightcast
