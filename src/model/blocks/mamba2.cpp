#include "model/blocks/mamba2.hpp"

#include <string>
#include <utility>
#include <vector>

namespace weightcast {

Mamba2::Mamba2(Names names, const Mamba2Sizes& sizes) : names_(std::move(names)), sizes_(sizes) {}

void Mamba2::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  tensors.add_float32(at + "A_log", {sizes_.heads});
  tensors.add(at + "D", {sizes_.heads});
  tensors.add(at + "dt_bias", {sizes_.heads});
  tensors.add(at + "conv1d.weight", {sizes_.channels(), 1, sizes_.kernel});
  if (sizes_.conv_bias) tensors.add(at + "conv1d.bias", {sizes_.channels()});
  tensors.add_linear(at + "in_proj", sizes_.inner() + sizes_.channels() + sizes_.heads, sizes_.hidden);
  tensors.add(at + "norm.weight", {sizes_.inner()});
  tensors.add_linear(at + "out_proj", sizes_.hidden, sizes_.inner());
}

std::vector<TensorParallel::Section> Mamba2::sections(const std::string& tensor, bool projected,
                                                      bool whole_groups) const {
  std::vector<TensorParallel::Section> sections;
  std::int64_t row = 0;
  const auto add = [&](std::int64_t count, bool whole = false) {
    sections.push_back({tensor, row, count, whole});
    row += count;
  };
  if (projected) add(sizes_.inner());
  add(sizes_.inner());
  add(sizes_.group_width(), whole_groups);
  add(sizes_.group_width(), whole_groups);
  if (projected) add(sizes_.heads);
  return sections;
}

void Mamba2::add_parameters(const Site& site, const EngineCut& cut,
                            std::vector<Parameter>& parameters) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const TensorParallel& ranks = cut.attention;
  const std::string module = from.substr(0, from.rfind('.'));
  require_divides(ranks.option(), ranks.size_name(), ranks.size(), "the heads of " + module, sizes_.heads);
  const bool whole_groups = sizes_.groups == 1;
  if (!whole_groups) {
    require_divides(ranks.option(), ranks.size_name(), ranks.size(), "the groups of " + module,
                    sizes_.groups);
  }
  const auto by_heads = [&](const std::string& name, const std::string& tensor, std::int64_t rows) {
    parameters.push_back(ranks.sections(at + name, {{from + tensor, 0, rows}}));
  };
  by_heads("A", "A_log", sizes_.heads);
  for (Part& part : parameters.back().parts) part.negated_exp = true;
  by_heads("D", "D", sizes_.heads);
  by_heads("dt_bias", "dt_bias", sizes_.heads);
  const auto add_convolution = [&](const std::string& name) {
    parameters.push_back(ranks.sections(at + name, sections(from + name, false, whole_groups)));
  };
  add_convolution("conv1d.weight");
  if (sizes_.conv_bias) add_convolution("conv1d.bias");
  cut.linears.add(
      ranks.sections(at + "in_proj.weight", sections(from + "in_proj.weight", true, whole_groups)),
      parameters);
  by_heads("norm.weight", "norm.weight", sizes_.inner());
  cut.linears.add(ranks.row_parallel(at + "out_proj.weight", from + "out_proj.weight"), parameters);
}

void Mamba2::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                 std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  const TensorParallel& ranks = cut.dense;
  require_divides(ranks.option(), "the trainers' t", ranks.size(),
                  "the groups of " + from.substr(0, from.rfind('.')), sizes_.groups);
  const auto add = [&](const std::string& name, const std::vector<TensorParallel::Section>& of,
                       std::vector<std::string> other_names = {}) {
    tensors.push_back({ranks.sections(at + name, of), std::move(other_names)});
  };
  const auto add_whole = [&](const std::string& name, std::int64_t rows) {
    add(name, {{from + name, 0, rows}});
  };
  add_whole("A_log", sizes_.heads);
  add_whole("D", sizes_.heads);
  add_whole("dt_bias", sizes_.heads);
  // Megatron keeps the convolution as a module or, in other versions, as two parameters of the mixer.
  add("conv1d.weight", sections(from + "conv1d.weight", false, false), {at + "conv1d_weight"});
  if (sizes_.conv_bias) {
    add("conv1d.bias", sections(from + "conv1d.bias", false, false), {at + "conv1d_bias"});
  }
  add("in_proj.weight", sections(from + "in_proj.weight", true, false));
  add_whole("norm.weight", sizes_.inner());
  tensors.push_back({ranks.row_parallel(at + "out_proj.weight", from + "out_proj.weight")});
}

}  // namespace weightcast
