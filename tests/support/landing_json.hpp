#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "model/engine.hpp"
#include "model/family.hpp"

namespace weightcast {

/// What a family says of a layout, written down as the landing map that an engine's loader would have given:
/// dense parameters and experts as `layout`, whose MoE layout is `triton`, has them.
inline nlohmann::json landing_json(const Family& family, const EngineLayout& layout) {
  using nlohmann::json;
  const Catalog& catalog = family.catalog();
  json tensors = json::array();
  for (const Tensor& tensor : catalog.tensors()) {
    tensors.push_back({{"name", tensor.name},
                       {"dtype", dtype_safetensors_name(tensor.dtype)},
                       {"shape", tensor.shape.extents()}});
  }
  json ranks = json::array();
  for (std::int64_t number = 0; number < layout.replica_ranks(); ++number) {
    std::vector<bool> read(catalog.size(), false);
    json parameters = json::array();
    for (const Parameter& parameter : family.parameters(layout, engine_rank(layout, number))) {
      json entry = {{"name", parameter.name},
                    {"dtype", dtype_safetensors_name(parameter.dtype)},
                    {"shape", parameter.shape.extents()}};
      if (parameter.name.ends_with("w13_weight")) entry["experts"] = "w13";
      if (parameter.name.ends_with("w2_weight")) entry["experts"] = "w2";
      for (const Part& part : parameter.parts) {
        read[part.tensor] = true;
        const Box at = place_in(parameter, part, part.box);
        entry["parts"].push_back(
            {part.tensor, part.box.row, part.box.rows, part.box.col, part.box.cols, at.row, at.col});
      }
      const std::int64_t pitch = parameter.shape.cols() * dtype_bytes(parameter.dtype);
      for (const Padding& padding : parameter.padding) {
        entry["zero"].push_back({padding.offset / pitch, padding.bytes / pitch, 0, parameter.shape.cols()});
      }
      parameters.push_back(entry);
    }
    json rank = {{"parameters", parameters}};
    for (std::uint32_t tensor = 0; tensor < catalog.size(); ++tensor) {
      if (!read[tensor]) rank["skipped"].push_back(tensor);
    }
    ranks.push_back(rank);
  }
  json map = {{"landing", 1},
              {"engine", engine_name(layout.engine)},
              {"engine_version", "0.32.0"},
              {"key", std::string(64, 'a')},
              {"made_for",
               {{"engine", engine_name(layout.engine)},
                {"engine_version", "0.32.0"},
                {"architecture", "TestForCausalLM"},
                {"tp", layout.tp},
                {"pp", layout.pp},
                {"ep", layout.ep}}},
              {"layout", {{"tp", layout.tp}, {"pp", layout.pp}, {"ep", layout.ep}}},
              {"tensors", tensors},
              {"ranks", ranks}};
  if (!layout.stage_layers.empty()) map["made_for"]["stage_layers"] = layout.stage_layers;
  return map;
}

}  // namespace weightcast
