#include "model/blocks/interleaved_experts.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"
#include "model/blocks/expert_names.hpp"

namespace weightcast {

InterleavedExperts::InterleavedExperts(Names names, const InterleavedExpertSizes& sizes)
    : names_(std::move(names)), sizes_(sizes) {}

void InterleavedExperts::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  tensors.add(at + ".gate_up_proj", {sizes_.experts, sizes_.hidden, 2 * sizes_.inner});
  tensors.add(at + ".gate_up_proj_bias", {sizes_.experts, 2 * sizes_.inner});
  tensors.add(at + ".down_proj", {sizes_.experts, sizes_.inner, sizes_.hidden});
  tensors.add(at + ".down_proj_bias", {sizes_.experts, sizes_.hidden});
}

void InterleavedExperts::add_parameters(const Site& site, const EngineCut& cut,
                                        std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const HeldExperts held = held_experts(site, names_, cut, sizes_.experts, sizes_.inner,
                                        "are stored transposed, gate and up in turn");
  const auto slots = std::ssize(held.numbers);
  const std::int64_t start = held.start;
  const std::int64_t inner = held.inner;
  const bool vllm = cut.layout.engine == Engine::kVllm;
  const std::string at = held.module + ".";

  // The transposes of [rows, cols) boxes of the experts' matrices, whose `height` rows lie one behind the
  // other.
  const auto turned = [&](const std::string& name, const std::string& tensor, std::int64_t height, Box box) {
    std::vector<PlacedBox> boxes;
    const std::uint32_t index = cut.catalog.at(tensor);
    const std::int64_t element = dtype_bytes(cut.catalog[index].dtype);
    const std::int64_t first_row = box.row;
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      box.row = held.numbers[static_cast<std::size_t>(slot)] * height + first_row;
      boxes.push_back({{index, box},
                       slot * box.area() * element,
                       turned_layout(element, box.rows * element),
                       box.rows,
                       box.cols});
    }
    parameters.push_back(place(cut.catalog, at + name, {slots, box.cols, box.rows}, boxes));
  };
  // The same part of a row of each expert.
  const auto biases = [&](const std::string& name, const std::string& tensor, std::int64_t first,
                          std::int64_t count, std::int64_t width) {
    std::vector<TensorBox> boxes;
    for (const std::int64_t expert : held.numbers) {
      boxes.push_back({cut.catalog.at(tensor), count == 0 ? Box{} : Box{expert, 1, first, count}});
    }
    parameters.push_back(stack(cut.catalog, at + name, {slots, width}, boxes));
  };
  turned("w13_weight", from + ".gate_up_proj", sizes_.hidden, {0, sizes_.hidden, 2 * start, 2 * inner});
  biases(vllm ? "w13_bias" : "w13_weight_bias", from + ".gate_up_proj_bias", 2 * start, 2 * inner, 2 * inner);
  turned("w2_weight", from + ".down_proj", sizes_.inner, {start, inner, 0, sizes_.hidden});
  // Added once, by the first rank of those that share an expert; zero on the others.
  biases(vllm ? "w2_bias" : "w2_weight_bias", from + ".down_proj_bias", 0,
         cut.rank.expert_tp == 0 ? sizes_.hidden : 0, sizes_.hidden);
}

void InterleavedExperts::add_trainer_experts(const Site& site, const TrainerExpertCut& cut,
                                             std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  if (cut.inner.size() > 1) {
    throw UsageError(
        fmt::format("{}: {}={}: how trainers cut {} whose gate and up lie in turn is not known; write ffn:t1",
                    cut.inner.option(), cut.inner.size_name(), cut.inner.size(), from));
  }
  const Catalog& catalog = cut.inner.catalog();
  constexpr std::int64_t kGateAndUp = 2;
  for_each_trainer_expert(
      cut, from, site.trainer + names_.trainer, sizes_.experts, [&](const TrainerExpert& expert) {
        const auto add = [&](const char* matrix, const char* kind, const std::string& tensor, Shape shape,
                             std::int64_t rows, std::int64_t turned) {
          const std::uint32_t index = catalog.at(from + tensor);
          const Box box{expert.number * rows, rows, 0, catalog[index].shape.cols()};
          TrainerTensor& held = tensors.emplace_back(
              TrainerTensor{stack(catalog, expert.grouped(matrix, kind), shape, {{index, box}}),
                            {expert.alone(matrix, kind)}});
          held.turned = turned;
        };
        add("linear_fc1", "weight", ".gate_up_proj", {2 * sizes_.inner, sizes_.hidden}, sizes_.hidden,
            kGateAndUp);
        add("linear_fc1", "bias", ".gate_up_proj_bias", {2 * sizes_.inner}, 1, kGateAndUp);
        add("linear_fc2", "weight", ".down_proj", {sizes_.hidden, sizes_.inner}, sizes_.inner, 1);
        add("linear_fc2", "bias", ".down_proj_bias", {sizes_.hidden}, 1, 0);
      });
}

}  // namespace weightcast
