#include "model/blocks/gated_delta_net.hpp"

#include <utility>

namespace weightcast {

GatedDeltaNet::GatedDeltaNet(Names names, const GatedDeltaSizes& sizes)
    : names_(std::move(names)), sizes_(sizes) {}

void GatedDeltaNet::list(const Site& site, TensorList& tensors) const {
  const std::string at = site.canonical + names_.canonical;
  const auto project = [&](const char* module, std::int64_t rows) {
    tensors.add_linear(at + module, rows, sizes_.hidden);
  };
  if (sizes_.grouped) {
    project("in_proj_qkvz", sizes_.channels() + sizes_.values());
    project("in_proj_ba", 2 * sizes_.value_heads);
  } else {
    project("in_proj_qkv", sizes_.channels());
    project("in_proj_z", sizes_.values());
    project("in_proj_b", sizes_.value_heads);
    project("in_proj_a", sizes_.value_heads);
  }
  tensors.add(at + "conv1d.weight", {sizes_.channels(), 1, sizes_.kernel});
  tensors.add_float32(at + "A_log", {sizes_.value_heads});
  tensors.add(at + "dt_bias", {sizes_.value_heads});
  tensors.add(at + "norm.weight", {sizes_.value_dim});
  tensors.add_linear(at + "out_proj", sizes_.hidden, sizes_.values());
}

void GatedDeltaNet::add_parameters(const Site& site, const EngineCut& cut,
                                   std::vector<Parameter>& parameters) const {
  using Section = TensorParallel::Section;
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const TensorParallel& heads = cut.attention;
  const std::string module = from.substr(0, from.rfind('.'));
  require_divides(heads.option(), heads.size_name(), heads.size(), "the key heads of " + module,
                  sizes_.key_heads);
  require_divides(heads.option(), heads.size_name(), heads.size(), "the value heads of " + module,
                  sizes_.value_heads);
  const auto by_heads = [&](const std::string& name, const std::vector<Section>& sections) {
    return heads.sections(at + name, sections);
  };
  const auto qkv = [&](const std::string& tensor) {
    return std::vector<Section>{{from + tensor, 0, sizes_.queries()},
                                {from + tensor, sizes_.queries(), sizes_.queries()},
                                {from + tensor, 2 * sizes_.queries(), sizes_.values()}};
  };
  const auto whole = [&](const std::string& tensor, std::int64_t rows) {
    return Section{from + tensor, 0, rows};
  };
  if (sizes_.grouped) {
    // A rank's key heads are its groups, which lie together.
    const std::string qkvz = "in_proj_qkvz.weight";
    const std::string ba = "in_proj_ba.weight";
    cut.linears.add(by_heads(qkvz, {whole(qkvz, sizes_.channels() + sizes_.values())}), parameters);
    cut.linears.add(by_heads(ba, {whole(ba, 2 * sizes_.value_heads)}), parameters);
  } else {
    std::vector<Section> qkvz = qkv("in_proj_qkv.weight");
    qkvz.push_back(whole("in_proj_z.weight", sizes_.values()));
    cut.linears.add(by_heads("in_proj_qkvz.weight", qkvz), parameters);
    cut.linears.add(by_heads("in_proj_ba.weight", {whole("in_proj_b.weight", sizes_.value_heads),
                                                   whole("in_proj_a.weight", sizes_.value_heads)}),
                    parameters);
  }
  parameters.push_back(by_heads("conv1d.weight", qkv("conv1d.weight")));
  for (const std::string name : {"A_log", "dt_bias"}) {
    parameters.push_back(by_heads(name, {whole(name, sizes_.value_heads)}));
  }
  parameters.push_back(heads.replicated(at + "norm.weight", from + "norm.weight"));
  cut.linears.add(heads.row_parallel(at + "out_proj.weight", from + "out_proj.weight"), parameters);
}

void GatedDeltaNet::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                        std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  std::vector<std::string> names{"conv1d.weight", "A_log", "dt_bias", "norm.weight", "out_proj.weight"};
  if (sizes_.grouped) {
    names.insert(names.end(), {"in_proj_qkvz.weight", "in_proj_ba.weight"});
  } else {
    names.insert(names.end(),
                 {"in_proj_qkv.weight", "in_proj_z.weight", "in_proj_b.weight", "in_proj_a.weight"});
  }
  for (const std::string& name : names) tensors.push_back({cut.dense.replicated(at + name, from + name)});
}

}  // namespace weightcast
