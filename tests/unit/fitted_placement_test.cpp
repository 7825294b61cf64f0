#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/fitted_placement.hpp"

namespace weightcast {

namespace {

using Slots = std::vector<std::int64_t>;

Catalog catalog_of(const std::vector<std::pair<std::int64_t, std::int64_t>>& experts_of_layers) {
  Catalog catalog;
  for (const auto& [layer, experts] : experts_of_layers) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    catalog.set_place(catalog.add(at + "norm.weight", DType::kBF16, {4}), layer, Tensor::kNone);
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const std::string name = at + "mlp.experts." + std::to_string(expert) + ".up_proj.weight";
      catalog.set_place(catalog.add(name, DType::kBF16, {4, 4}), layer, expert);
    }
    const std::string shared = at + "mlp.shared_experts.up_proj.weight";
    catalog.set_place(catalog.add(shared, DType::kBF16, {4, 4}), layer, Tensor::kNone);
  }
  return catalog;
}

ExpertMap map_of(std::vector<Slots> rows, std::int64_t experts) {
  const auto slots = static_cast<std::int64_t>(rows.front().size());
  return {"map.json", experts, slots, 1, {5, std::move(rows)}};
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST(FittedPlacement, LayersOfACatalog) {
  const ModelLayers layers = model_layers(catalog_of({{0, 0}, {1, 3}, {2, 3}, {3, 3}}), 3);
  EXPECT_EQ(layers.own, 3);
  EXPECT_EQ(layers.all, 4);
  ASSERT_EQ(layers.experts.size(), 3u);
  EXPECT_EQ(layers.experts.front().layer, 1);
  EXPECT_EQ(layers.experts.front().experts, 3);
}

TEST(FittedPlacement, ExpertsInOneTensorAreItsFirstDimension) {
  Catalog catalog;
  catalog.set_place(catalog.add("model.layers.0.mlp.experts.gate_up_proj", DType::kBF16, {6, 4, 4}), 0,
                    Tensor::kNone);
  EXPECT_EQ(model_layers(catalog, 0).experts.front().experts, 6);
}

TEST(FittedPlacement, RowsOfEveryLayerOrOfThoseWithExperts) {
  const ModelLayers layers = model_layers(catalog_of({{0, 0}, {1, 2}, {2, 2}}), 0);
  const Slots dense{0, 1, 0};
  const Slots one{1, 0, 1};
  const Slots two{0, 0, 1};
  const ExpertPlacement all = fit_placement(map_of({dense, one, two}, 2), layers);
  const ExpertPlacement alone = fit_placement(map_of({one, two}, 2), layers);
  EXPECT_EQ(all.experts_of_slots, (std::vector<Slots>{{}, one, two}));
  EXPECT_EQ(alone.experts_of_slots, all.experts_of_slots);
  EXPECT_EQ(alone.epoch, 5);
  EXPECT_EQ(alone.fingerprint(), all.fingerprint());
}

TEST(FittedPlacement, DraftLayersWithoutARowBeginAsEnginesDo) {
  const ModelLayers layers = model_layers(catalog_of({{0, 0}, {1, 2}, {2, 2}}), 2);
  const Slots one{1, 1, 0, 0};
  const Slots first{0, 1, 0, 1};
  EXPECT_EQ(fit_placement(map_of({one}, 2), layers).experts_of_slots, (std::vector<Slots>{{}, one, first}));
  const ModelLayers two_dense = model_layers(catalog_of({{0, 0}, {1, 0}, {2, 2}, {3, 2}}), 3);
  EXPECT_EQ(fit_placement(map_of({first, first, one}, 2), two_dense).experts_of_slots,
            (std::vector<Slots>{{}, {}, one, first}));
  const Slots draft{0, 1, 1, 1};
  EXPECT_EQ(fit_placement(map_of({first, one, draft}, 2), layers).experts_of_slots.back(), draft);
}

TEST(FittedPlacement, RowsThatCouldBeOfOtherLayersAreRefused) {
  // One layer without experts and one draft layer: two rows are those of the model alone, or all with
  // experts.
  const ModelLayers layers = model_layers(catalog_of({{0, 0}, {1, 2}, {2, 2}}), 2);
  EXPECT_EQ(refusal([&] {
              fit_placement(map_of({{0, 1}, {1, 0}}, 2), layers);
            }),
            "map.json: has 2 layers, which may be those of the model without its draft layers or all that "
            "have experts; name a map "
            "with a row for each layer of either");
}

TEST(FittedPlacement, AMapThatChangesNothingIsNone) {
  const ModelLayers layers = model_layers(catalog_of({{0, 2}}), 0);
  const ExpertPlacement placement = fit_placement(map_of({{0, 1}}, 2), layers);
  EXPECT_TRUE(placement.contiguous());
  EXPECT_EQ(placement.epoch, 5);
}

TEST(FittedPlacement, RefusesWhatDoesNotFit) {
  const ModelLayers layers = model_layers(catalog_of({{0, 0}, {1, 2}, {2, 2}}), 0);
  const Slots row{0, 1};
  EXPECT_EQ(
      refusal([&] {
        fit_placement(map_of({row, row, row, row}, 2), layers);
      }),
      "map.json: has 4 layers, but the model has 3, 2 of them with experts; name a map with a row for each "
      "of either");
  EXPECT_EQ(
      refusal([&] { fit_placement(map_of({row}, 2), layers); }),
      "map.json: has 1 layer, but the model has 3, 2 of them with experts; name a map with a row for each "
      "of either");
  EXPECT_EQ(refusal([&] {
              fit_placement(map_of({{0, 1, 2}, {0, 1, 2}}, 3), layers);
            }),
            "map.json: is of 3 experts, but layer 1 of the model has 2; name a map of these");
}

TEST(FittedPlacement, FirstPlacements) {
  const ModelLayers layers = model_layers(catalog_of({{0, 0}, {1, 6}}), 0);
  EXPECT_TRUE(first_placement(FirstPlacement::kContiguous, 0, layers, 2, "o").contiguous());
  EXPECT_TRUE(first_placement(FirstPlacement::kRoundRobin, 0, layers, 1, "o").contiguous());
  EXPECT_EQ(first_placement(FirstPlacement::kRoundRobin, 0, layers, 3, "o").experts_of_slots,
            (std::vector<Slots>{{}, {0, 3, 1, 4, 2, 5}}));
  EXPECT_EQ(first_placement(FirstPlacement::kContiguous, 2, layers, 4, "o").experts_of_slots,
            (std::vector<Slots>{{}, {0, 1, 2, 3, 4, 5, 0, 1}}));
  EXPECT_EQ(
      refusal([&] { first_placement(FirstPlacement::kContiguous, 1, layers, 2, "--o"); }),
      "--o: 6 experts of layer 1 and 1 redundant ones are 7 slots, which ep=2 does not divide; choose as "
      "many redundant experts that it does");
  EXPECT_NE(
      refusal([&] { first_placement(FirstPlacement::kRoundRobin, 3, layers, 3, "--o"); }).find("go round"),
      std::string::npos);
}

}  // namespace weightcast
