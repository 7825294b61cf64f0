#include "model/landing/landing_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace weightcast {

namespace {

/// Of the map's tensors.
using TensorNames = std::unordered_set<std::string_view>;

/// A box of a tensor in a parameter, whoever says it.
struct Said {
  std::string_view tensor;
  Box box;
  Box place;
  bool turned = false;

  std::string to_string() const {
    return fmt::format("{} of {} at {}{}", box.to_string(), tensor, place.to_string(),
                       turned ? ", turned" : "");
  }
};

/// Whether the elements that two boxes have in common are the same ones.
bool agree(const Said& a, const Said& b) {
  if (a.tensor != b.tensor || a.turned != b.turned) return false;
  // Of a box that is turned, rows are columns there.
  const auto shift = [](const Said& said) {
    return said.turned ? std::pair(said.box.row - said.place.col, said.box.col - said.place.row)
                       : std::pair(said.box.row - said.place.row, said.box.col - said.place.col);
  };
  return shift(a) == shift(b);
}

/// Where a part's box lies in the parameter's matrix view.
Box place_of(const Parameter& parameter, const Part& part) {
  if (!part.layout.transposed()) return place_in(parameter, part, part.box);
  const std::int64_t first = part.offset / dtype_bytes(parameter.dtype);
  const std::int64_t cols = parameter.shape.cols();
  return {first / cols, part.box.cols, first % cols, part.box.rows};
}

/// What a family says, in the tensors that the map has: of experts that the checkpoint stacks the stack.
std::vector<Said> said_by(const Parameter& parameter, const Family& family, const TensorNames& names) {
  std::vector<Said> said;
  for (const Part& part : parameter.parts) {
    const Tensor& tensor = family.catalog()[part.tensor];
    Said one{tensor.name, part.box, place_of(parameter, part), part.layout.transposed()};
    const auto form = family.other_stored_form(tensor);
    const auto stored = form ? names.find(form->name) : names.end();
    if (stored != names.end() && !names.contains(tensor.name)) {
      one.tensor = *stored;
      one.box.row += form->row;
    }
    said.push_back(one);
  }
  return said;
}

std::vector<Said> said_by(const LandedParameter& parameter, const LandingMap& map) {
  std::vector<Said> said;
  for (const Landing& landing : parameter.landings) {
    said.push_back({map.tensors[landing.tensor].name, landing.box, landing.place(), landing.turned});
  }
  return said;
}

/// Looks for the first box of `list` that `others` do not cover with the same elements, and for one of those
/// that has its place.
std::optional<std::pair<const Said*, const Said*>> find_unlike(const std::vector<Said>& list,
                                                               const std::vector<Said>& others) {
  std::unordered_map<std::string_view, std::vector<const Said*>> by_tensor;
  for (const Said& other : others) by_tensor[other.tensor].push_back(&other);
  for (const Said& one : list) {
    std::int64_t alike = 0;
    for (const Said* other : by_tensor[one.tensor]) {
      if (agree(one, *other)) alike += one.place.intersect(other->place).area();
    }
    if (alike == one.place.area()) continue;
    const auto there = std::find_if(others.begin(), others.end(), [&](const Said& other) {
      return !agree(one, other) && !one.place.intersect(other.place).empty();
    });
    return std::pair(&one, there == others.end() ? nullptr : &*there);
  }
  return std::nullopt;
}

[[noreturn]] void refuse(const LandingMap& map, std::size_t rank, const std::string& parameter,
                         const std::string& in_map, const std::string& in_family) {
  throw InputError(
      fmt::format("{}: rank {}, parameter {}: the map has {}, but the model's config makes {}; is the map of "
                  "this model? If it is, the engine loads it otherwise than this version knows",
                  map.origin, rank, parameter, in_map, in_family));
}

std::string text_of(const Said* said) {
  return said == nullptr ? "no tensor there" : said->to_string();
}

void compare(const LandingMap& map, std::size_t rank, const LandedParameter& landed,
             const Parameter& parameter, const Family& described, const TensorNames& names) {
  if (landed.shape != parameter.shape) {
    refuse(map, rank, landed.name, "shape " + landed.shape.to_string(), parameter.shape.to_string());
  }
  // What the loader makes of tensors is not said.
  if (landed.loaded) return;
  const std::vector<Said> in_map = said_by(landed, map);
  const std::vector<Said> in_family = said_by(parameter, described, names);
  if (const auto unlike = find_unlike(in_map, in_family)) {
    refuse(map, rank, landed.name, text_of(unlike->first), text_of(unlike->second));
  }
  if (const auto unlike = find_unlike(in_family, in_map)) {
    refuse(map, rank, landed.name, text_of(unlike->second), text_of(unlike->first));
  }
}

}  // namespace

void require_as_described(const LandingMap& map, const Family& described) {
  const EngineLayout layout = layout_of(map);
  TensorNames names;
  for (const LandedTensor& tensor : map.tensors) names.insert(tensor.name);
  for (std::size_t number = 0; number < map.ranks.size(); ++number) {
    std::vector<Parameter> parameters;
    try {
      parameters = described.parameters(layout, engine_rank(layout, static_cast<std::int64_t>(number)));
    } catch (const UsageError&) {
      // The engine has loaded what the family does not divide: the map alone says how.
      return;
    }
    const std::vector<LandedParameter>& landed = map.ranks[number].parameters;
    std::unordered_map<std::string_view, const LandedParameter*> by_name;
    for (const LandedParameter& one : landed) {
      by_name.emplace(one.name, &one);
      for (const std::string& alias : one.aliases) by_name.emplace(alias, &one);
    }
    std::unordered_set<const LandedParameter*> compared;
    for (const Parameter& parameter : parameters) {
      const auto found = by_name.find(parameter.name);
      if (found == by_name.end()) {
        refuse(map, number, parameter.name, "no such parameter",
               fmt::format("one of {}", parameter.shape.to_string()));
      }
      compare(map, number, *found->second, parameter, described, names);
      compared.insert(found->second);
    }
    for (const LandedParameter& one : landed) {
      if (compared.contains(&one) || one.landings.empty()) continue;
      refuse(map, number, one.name, said_by(one, map).front().to_string(), "no such parameter");
    }
  }
}

}  // namespace weightcast
