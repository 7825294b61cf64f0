#include "model/blocks/gated_delta_net.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/error.hpp"

namespace weightcast {

namespace {

using Section = TensorParallel::Section;

Section whole(const std::string& tensor, std::int64_t rows) {
  return {tensor, 0, rows};
}

/// q, k and v, which lie one behind the other in `tensor`.
std::vector<Section> qkv(const GatedDeltaSizes& sizes, const std::string& tensor) {
  return {{tensor, 0, sizes.queries()},
          {tensor, sizes.queries(), sizes.queries()},
          {tensor, 2 * sizes.queries(), sizes.values()}};
}

}  // namespace

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
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.engine + names_.engine;
  const TensorParallel& heads = cut.attention;
  require_cut(heads, from.substr(0, from.rfind('.')));
  const auto by_heads = [&](const std::string& name, const std::vector<Section>& sections) {
    return heads.sections(at + name, sections);
  };
  if (sizes_.grouped) {
    // A rank's key heads are its groups, which lie together.
    const std::string qkvz = "in_proj_qkvz.weight";
    const std::string ba = "in_proj_ba.weight";
    cut.linears.add(by_heads(qkvz, {whole(from + qkvz, sizes_.channels() + sizes_.values())}), parameters);
    cut.linears.add(by_heads(ba, {whole(from + ba, 2 * sizes_.value_heads)}), parameters);
  } else {
    std::vector<Section> qkvz = qkv(sizes_, from + "in_proj_qkv.weight");
    qkvz.push_back(whole(from + "in_proj_z.weight", sizes_.values()));
    cut.linears.add(by_heads("in_proj_qkvz.weight", qkvz), parameters);
    cut.linears.add(by_heads("in_proj_ba.weight", {whole(from + "in_proj_b.weight", sizes_.value_heads),
                                                   whole(from + "in_proj_a.weight", sizes_.value_heads)}),
                    parameters);
  }
  parameters.push_back(by_heads("conv1d.weight", qkv(sizes_, from + "conv1d.weight")));
  for (const std::string name : {"A_log", "dt_bias"}) {
    parameters.push_back(by_heads(name, {whole(from + name, sizes_.value_heads)}));
  }
  parameters.push_back(heads.replicated(at + "norm.weight", from + "norm.weight"));
  cut.linears.add(heads.row_parallel(at + "out_proj.weight", from + "out_proj.weight"), parameters);
}

void GatedDeltaNet::require_cut(const TensorParallel& heads, const std::string& module,
                                const std::string& remedy) const {
  for (const auto& [kind, count] :
       {std::pair("key", sizes_.key_heads), std::pair("value", sizes_.value_heads)}) {
    if (count % heads.size() == 0) continue;
    throw UsageError(fmt::format("{}: {}={} does not divide the {} heads of {} ({}); choose a divisor{}",
                                 heads.option(), heads.size_name(), heads.size(), kind, module, count,
                                 remedy));
  }
}

std::vector<Section> GatedDeltaNet::projected(const std::string& from, const TensorParallel& heads) const {
  if (!sizes_.grouped) {
    std::vector<Section> rows = qkv(sizes_, from + "in_proj_qkv.weight");
    rows.push_back(whole(from + "in_proj_z.weight", sizes_.values()));
    rows.push_back(whole(from + "in_proj_b.weight", sizes_.value_heads));
    rows.push_back(whole(from + "in_proj_a.weight", sizes_.value_heads));
    return rows;
  }
  // A group has one key head: its query, its key, then values and gates of its value heads; b and a likewise.
  const std::int64_t groups = sizes_.key_heads / heads.size();
  const std::int64_t group_heads = sizes_.value_heads / sizes_.key_heads;
  const std::int64_t group_values = group_heads * sizes_.value_dim;
  std::vector<Section> rows;
  const auto add = [&](const std::string& tensor, std::int64_t group_rows, std::int64_t first,
                       std::int64_t count) {
    for (std::int64_t group = heads.rank() * groups; group < (heads.rank() + 1) * groups; ++group) {
      rows.push_back({from + tensor, group * group_rows + first, count, true});
    }
  };
  const std::int64_t qkvz = 2 * sizes_.key_dim + 2 * group_values;
  add("in_proj_qkvz.weight", qkvz, 0, sizes_.key_dim);
  add("in_proj_qkvz.weight", qkvz, sizes_.key_dim, sizes_.key_dim);
  add("in_proj_qkvz.weight", qkvz, 2 * sizes_.key_dim, group_values);
  add("in_proj_qkvz.weight", qkvz, 2 * sizes_.key_dim + group_values, group_values);
  add("in_proj_ba.weight", 2 * group_heads, 0, group_heads);
  add("in_proj_ba.weight", 2 * group_heads, group_heads, group_heads);
  return rows;
}

void GatedDeltaNet::add_trainer_tensors(const Site& site, const TrainerCut& cut,
                                        std::vector<TrainerTensor>& tensors) const {
  if (cut.whole_linear_attention) return add_whole(site, cut, tensors);
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer;
  const TensorParallel& heads = cut.dense;
  require_cut(heads, from.substr(0, from.rfind('.')),
              ", or say with --trainer-linear-attention whole that each rank has all of it");
  const auto by_heads = [&](const std::string& name, const std::vector<Section>& sections) {
    tensors.push_back({heads.sections(at + name, sections)});
  };
  by_heads("in_proj.weight", projected(from, heads));
  by_heads("conv1d.weight", qkv(sizes_, from + "conv1d.weight"));
  for (const std::string name : {"A_log", "dt_bias"})
    by_heads(name, {whole(from + name, sizes_.value_heads)});
  tensors.push_back({heads.replicated(at + "out_norm.weight", from + "norm.weight")});
  tensors.back().less_one = !cut.plain_linear_norm;
  tensors.push_back({heads.row_parallel(at + "out_proj.weight", from + "out_proj.weight")});
}

void GatedDeltaNet::add_whole(const Site& site, const TrainerCut& cut,
                              std::vector<TrainerTensor>& tensors) const {
  const std::string from = site.canonical + names_.canonical;
  const std::string at = site.trainer + names_.trainer + "linear_attn.";
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
