#include "model/landing/landing_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/json_text.hpp"
#include "model/catalog.hpp"
#include "model/landing/landing_proof.hpp"
#include "model/map_fields.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

constexpr std::int64_t kLandingMapFormat = 1;
class LandingFields : public MapFields {
 public:
  LandingFields(const json& object, std::string where)
      : MapFields(object, std::move(where), "learn the map anew with weightcast learn") {}
};

/// Reads and proves one rank.
class RankReader {
 public:
  RankReader(const LandingMap& map, const json& object, std::string where)
      : map_(map), where_(std::move(where)), fields_(object, where_) {}

  LandingRank read() {
    double bytes = 0;
    for (const json& object : fields_.list("parameters")) {
      rank_.parameters.push_back(parameter(object, rank_.parameters.size()));
      const LandedParameter& last = rank_.parameters.back();
      bytes += static_cast<double>(last.shape.elements()) * static_cast<double>(dtype_bytes(last.dtype));
    }
    require_plausible(where_ + ": the parameters", static_cast<double>(rank_.parameters.size()), bytes);
    read_left();
    read_loader();
    for (const json& value : fields_.optional_list("skipped")) {
      reading_.skip(tensor_of(value, fields_, "skipped"));
      ++rank_.skipped;
    }
    for (const LandedParameter& parameter : rank_.parameters) {
      prove_landing(parameter, map_, fmt::format("{}, parameter {}", where_, parameter.name));
    }
    reading_.require_all(map_, where_);
    require_apart();
    return std::move(rank_);
  }

 private:
  LandedParameter parameter(const json& object, std::size_t number) {
    const LandingFields unnamed(object, fmt::format("{}: parameter number {}", where_, number));
    LandedParameter parameter;
    parameter.name = unnamed.name("name");
    const LandingFields fields(object, fmt::format("{}, parameter {}", where_, parameter.name));
    parameter.dtype = fields.dtype();
    parameter.shape = fields.shape();
    parameter.aliases = fields.names("aliases");
    add_name(parameter.name, fields);
    for (const std::string& alias : parameter.aliases) add_name(alias, fields);
    if (fields.find("experts", false) != nullptr) {
      const std::string experts = fields.text("experts");
      if ((experts != "w13" && experts != "w2") || parameter.shape.dims() != 3) {
        fields.refuse("experts", "is for parameters [experts, rows, columns], and is w13 or w2");
      }
      parameter.experts = experts == "w13" ? ExpertWeights::kW13 : ExpertWeights::kW2;
    }
    read_landings(fields, "parts", false, parameter);
    read_landings(fields, "turned", true, parameter);
    parameter.zero = boxes(fields, "zero");
    return parameter;
  }

  void read_landings(const LandingFields& fields, const char* list, bool turned, LandedParameter& parameter) {
    for (const json& object : fields.optional_list(list)) {
      constexpr std::size_t kNumbers = 7;
      const std::vector<std::int64_t> n = fields.box(object, kNumbers, list);
      const std::uint32_t tensor = tensor_of(object[0], fields, list);
      if (parameter.landings.size() == kMostMapBoxes) {  // proofs look at all pairs of some of them
        fields.refuse(list, fmt::format("make more than {} boxes of one parameter", kMostMapBoxes));
      }
      parameter.landings.push_back({tensor, {n[1], n[2], n[3], n[4]}, n[5], n[6], turned});
      reading_.read(tensor);
    }
  }

  /// As [row, rows, column, columns].
  static std::vector<Box> boxes(const LandingFields& fields, const char* list) {
    std::vector<Box> result;
    for (const json& object : fields.optional_list(list)) {
      constexpr std::size_t kNumbers = 4;
      const std::vector<std::int64_t> n = fields.box(object, kNumbers, list);
      result.push_back({n[0], n[1], n[2], n[3]});
    }
    return result;
  }

  /// What is left of a parameter, or a whole one, of which no more than the name matters.
  void read_left() {
    for (const json& object : fields_.optional_list("left")) {
      const LandingFields unnamed(object, where_ + ", 'left'");
      const std::string name = unnamed.name("name");
      const LandingFields fields(object, fmt::format("{}, left parameter {}", where_, name));
      if (fields.find("why", false) != nullptr) fields.name("why");
      const auto part_of = find(name);
      const std::vector<Box> left = boxes(fields, "boxes");
      if (part_of == rank_.parameters.end()) {
        add_name(name, fields);
        rank_.left.push_back(name);
        continue;
      }
      if (left.empty()) fields.refuse("boxes", "are missing, but tensors feed that parameter");
      part_of->left.insert(part_of->left.end(), left.begin(), left.end());
    }
  }

  void read_loader() {
    for (const json& object : fields_.optional_list("loader")) {
      const LandingFields fields(object, where_ + ", 'loader'");
      LoadedTensor loaded;
      loaded.tensor = tensor_of(*fields.find("tensor", true), fields, "tensor");
      loaded.parameters = fields.names("parameters");
      loaded.why = fields.name("why");
      reading_.load(loaded.tensor);
      for (const std::string& name : loaded.parameters) {
        const auto parameter = find(name);
        if (parameter != rank_.parameters.end()) parameter->loaded = true;
      }
      rank_.loader.push_back(std::move(loaded));
    }
  }

  /// A tensor of the loader is published by its own name, beside the parameters.
  void require_apart() {
    for (const LoadedTensor& loaded : rank_.loader) {
      const std::string& name = map_.tensors[loaded.tensor].name;
      const auto parameter = find(name);
      if (parameter == rank_.parameters.end() || parameter->loaded) continue;
      fields_.refuse("loader",
                     fmt::format("holds {}, the name of a tensor and of a parameter that has boxes", name));
    }
  }

  std::vector<LandedParameter>::iterator find(const std::string& name) {
    const auto found = numbers_.find(name);
    return found == numbers_.end() ? rank_.parameters.end()
                                   : rank_.parameters.begin() + static_cast<std::ptrdiff_t>(found->second);
  }

  void add_name(const std::string& name, const LandingFields& fields) {
    if (!numbers_.emplace(name, rank_.parameters.size()).second) {
      fields.refuse("name", fmt::format("or an alias is {}, which another one has", name));
    }
  }

  std::uint32_t tensor_of(const json& value, const LandingFields& fields, const char* field) const {
    return fields.tensor(value, map_.tensors.size(), field);
  }

  const LandingMap& map_;
  std::string where_;
  LandingFields fields_;
  LandingRank rank_;
  TensorReading reading_{map_.tensors.size()};
  std::unordered_map<std::string, std::size_t> numbers_;  ///< of parameters, by all names
};

std::vector<LandedTensor> read_tensors(const LandingFields& fields) {
  std::vector<LandedTensor> tensors;
  for (NamedTensor& of : fields.tensors("tensors")) {
    LandedTensor& tensor = tensors.emplace_back();
    tensor.name = std::move(of.name);
    tensor.dtype = of.dtype;
    tensor.shape = of.shape;
  }
  return tensors;
}

/// Throws InputError unless what the map says of the learning is what it says of itself.
void require_made_for(const LandingMap& map, const LandingFields& fields) {
  fields.key();
  const LandingFields made_for(*fields.find("made_for", true), fields.where() + ": 'made_for'");
  const auto require = [&](const char* name, bool same) {
    if (!same) made_for.refuse(name, "is not what the map says outside of 'made_for'");
  };
  require("engine", made_for.text("engine") == engine_name(map.engine));
  require("engine_version", made_for.text("engine_version") == map.engine_version);
  require("tp", made_for.number("tp", 1) == map.tp);
  require("pp", made_for.number("pp", 1) == map.pp);
  require("ep", made_for.number("ep", 1) == map.ep);
}

void read_layout(const LandingFields& fields, LandingMap& map) {
  const LandingFields layout(*fields.find("layout", true), fields.where() + ": 'layout'");
  constexpr std::int64_t kMost = 1 << 20;
  const auto size = [&](const char* name) {
    const std::int64_t value = layout.number(name, 1);
    if (value > kMost) layout.refuse(name, "is too large");
    return value;
  };
  map.tp = size("tp");
  map.pp = size("pp");
  map.ep = size("ep");
  if (map.tp % map.ep != 0) layout.refuse("ep", "does not divide tp");
}

}  // namespace

std::string LandingMap::title() const {
  return fmt::format("{}, learned from {} {}", origin, engine_name(engine), engine_version);
}

LandingMap parse_landing_map(const std::string& text, const std::string& origin) {
  const json object = parse_json(text, origin, kMapLimits);
  const LandingFields fields(object, origin);
  if (fields.number("landing") != kLandingMapFormat) {
    fields.refuse("landing",
                  fmt::format("is another format than {}, which this version reads", kLandingMapFormat));
  }
  LandingMap map;
  map.origin = origin;
  map.hash = fmt::format("{:016x}", hash_text(text));
  const auto engine = find_engine(fields.text("engine"));
  if (!engine || *engine == Engine::kHf) fields.refuse("engine", "is neither vllm nor sglang");
  map.engine = *engine;
  map.engine_version = fields.name("engine_version");
  read_layout(fields, map);
  require_made_for(map, fields);
  const LandingFields made_for(*fields.find("made_for", true), origin + ": 'made_for'");
  map.architecture = made_for.name("architecture");
  if (made_for.find("stage_layers", false) != nullptr) map.stage_layers = made_for.numbers("stage_layers");
  map.tensors = read_tensors(fields);
  const json& ranks = fields.list("ranks");
  if (static_cast<std::int64_t>(ranks.size()) != map.pp * map.tp) {
    fields.refuse("ranks", fmt::format("are {}, but 'layout' makes {}", ranks.size(), map.pp * map.tp));
  }
  for (const json& rank : ranks) {
    map.ranks.push_back(RankReader(map, rank, fmt::format("{}: rank {}", origin, map.ranks.size())).read());
  }
  sum_up_reading(map);
  return map;
}

EngineLayout layout_of(const LandingMap& map) {
  EngineLayout layout;
  layout.engine = map.engine;
  layout.tp = map.tp;
  layout.pp = map.pp;
  layout.ep = map.ep;
  layout.stage_layers = map.stage_layers;
  layout.landing = map.hash;
  layout.option = "--landing";
  return layout;
}

void require_layout(const LandingMap& map, const EngineLayout& layout) {
  if (layout.attention_dp > 1) {
    throw UsageError(
        fmt::format("{}: attn_tp={},attn_dp={}, but the map {} is of an engine whose attention is cut by its "
                    "tp; name that "
                    "layout, or leave --landing out",
                    layout.option, layout.attention_tp(), layout.attention_dp, map.origin));
  }
  if (layout.engine == map.engine && layout.tp == map.tp && layout.pp == map.pp && layout.ep == map.ep)
    return;
  throw UsageError(
      fmt::format("{}: is {} tp={},ep={},pp={}, but the map {} is for {} tp={},ep={},pp={}; "
                  "name that layout, or another map",
                  layout.option, engine_name(layout.engine), layout.tp, layout.ep, layout.pp, map.origin,
                  engine_name(map.engine), map.tp, map.ep, map.pp));
}

}  // namespace weightcast
