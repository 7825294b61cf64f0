#include "model/export_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "core/boxes.hpp"
#include "core/error.hpp"
#include "model/map_fields.hpp"

namespace weightcast {

namespace {

using nlohmann::json;

constexpr std::int64_t kExportMapFormat = 1;

class ExportFields : public MapFields {
 public:
  ExportFields(const json& object, std::string where)
      : MapFields(object, std::move(where), "publish anew, which learns the map anew") {}
};

/// Throws InputError unless a box lies within both of its tensors, which must be of one type.
void require_box(const ExportedBox& of, const OwnTensor& own, const ExportedTensor& tensor,
                 const ExportFields& fields) {
  if (tensor.dtype != own.dtype) {
    fields.refuse(
        "boxes",
        fmt::format("are {} of tensor {}, which is {}: nothing is converted where it is read",
                    dtype_safetensors_name(own.dtype), tensor.name, dtype_safetensors_name(tensor.dtype)));
  }
  if (!lies_within(of.box, tensor.shape)) {
    fields.refuse("boxes", fmt::format("has one that tensor {} {} has not: {}", tensor.name,
                                       tensor.shape.to_string(), text_of_extents(of.box)));
  }
  const std::int64_t elements = own.shape.elements();
  const std::int64_t behind = of.from < elements ? elements - of.from : 0;  // elements from `from` on
  const bool first = of.box.cols <= behind;
  const bool others =
      of.box.rows == 1 || (of.pitch >= of.box.cols && of.pitch <= (behind - of.box.cols) / (of.box.rows - 1));
  if (!first || !others) {
    fields.refuse("boxes",
                  fmt::format("has one that its {} elements have not: {} rows of {} from element {} on, "
                              "each {} behind the one before",
                              elements, of.box.rows, of.box.cols, of.from, of.pitch));
  }
}

ExportingRank read_rank(const json& object, const std::string& where, const ExportMap& map) {
  const ExportFields fields(object, where);
  ExportingRank rank;
  std::set<std::string> names;
  std::map<std::uint32_t, std::vector<Box>> boxes;
  for (NamedTensor& of : fields.tensors("tensors")) {
    names.insert(of.name);
    rank.tensors.push_back({std::move(of.name), of.dtype, of.shape, {}});
  }
  std::size_t number = 0;
  for (const json& listed : fields.list("tensors")) {
    OwnTensor& own = rank.tensors[number++];
    const ExportFields of_tensor(listed, fmt::format("{}, tensor {}", where, own.name));
    for (const json& numbers : of_tensor.list("boxes")) {
      constexpr std::size_t kNumbers = 7;
      const std::vector<std::int64_t> n = of_tensor.box(numbers, kNumbers, "boxes");
      const ExportedBox box{
          of_tensor.tensor(numbers[0], map.tensors.size(), "boxes"), {n[1], n[2], n[3], n[4]}, n[5], n[6]};
      require_box(box, own, map.tensors[box.tensor], of_tensor);
      if (own.boxes.size() == kMostMapBoxes) {
        of_tensor.refuse("boxes", fmt::format("are more than {}", kMostMapBoxes));
      }
      own.boxes.push_back(box);
      boxes[box.tensor].push_back(box.box);
    }
  }
  for (auto& [tensor, of_tensor] : boxes) {
    const auto both = find_overlap(of_tensor);
    if (!both) continue;
    fields.refuse("tensors", fmt::format("have elements of {} twice: {} and {}", map.tensors[tensor].name,
                                         both->first.to_string(), both->second.to_string()));
  }
  for (std::string& name : fields.names("left")) {
    if (names.contains(name) || !rank.left.insert(name).second) {
      fields.refuse("left", fmt::format("has {}, which is there twice", name));
    }
  }
  return rank;
}

/// Throws InputError naming a tensor of which no trainer has some element.
void require_whole(const ExportMap& map) {
  std::vector<std::vector<Box>> boxes(map.tensors.size());
  for (const ExportingRank& rank : map.ranks) {
    for (const OwnTensor& own : rank.tensors) {
      for (const ExportedBox& box : own.boxes) boxes[box.tensor].push_back(box.box);
    }
  }
  double work = 2e10;
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    const ExportedTensor& tensor = map.tensors[i];
    const auto area = covered_area(boxes[i], work);
    if (area && *area == tensor.shape.elements()) continue;
    throw InputError(
        fmt::format("{}: tensor {} {} {}; publish anew, which learns the map anew", map.origin, tensor.name,
                    tensor.shape.to_string(),
                    area ? fmt::format("has {} elements that no trainer has", tensor.shape.elements() - *area)
                         : fmt::format("is cut into too many pieces by its {} boxes", boxes[i].size())));
  }
}

/// Finds tensors that are the same elements of the same trainers, as a tied head is.
void find_same(ExportMap& map) {
  using Place = std::tuple<std::size_t, std::size_t, ExportedBox>;
  std::vector<std::vector<Place>> places(map.tensors.size());
  for (std::size_t rank = 0; rank < map.ranks.size(); ++rank) {
    const std::vector<OwnTensor>& own = map.ranks[rank].tensors;
    for (std::size_t i = 0; i < own.size(); ++i) {
      for (ExportedBox box : own[i].boxes) {
        const std::uint32_t tensor = std::exchange(box.tensor, 0);
        places[tensor].emplace_back(rank, i, box);
      }
    }
  }
  std::map<std::vector<Place>, std::uint32_t> first;
  for (std::uint32_t i = 0; i < places.size(); ++i) {
    std::sort(places[i].begin(), places[i].end());
    map.tensors[i].same_as = first.emplace(std::move(places[i]), i).first->second;
  }
}

}  // namespace

ExportMap parse_export_map(const std::string& text, const std::string& origin) {
  const json object = parse_json(text, origin, kMapLimits);
  const ExportFields fields(object, origin);
  if (fields.number("exports") != kExportMapFormat) {
    fields.refuse("exports",
                  fmt::format("is another format than {}, which this version reads", kExportMapFormat));
  }
  ExportMap map;
  map.origin = origin;
  map.key = fields.key();
  for (NamedTensor& tensor : fields.tensors("tensors")) {
    map.tensors.push_back({std::move(tensor.name), tensor.dtype, tensor.shape, 0});
  }
  const ExportFields made_for(*fields.find("made_for", true), origin + ": 'made_for'");
  const json& ranks = fields.list("ranks");
  if (made_for.number("ranks", 1) != static_cast<std::int64_t>(ranks.size())) {
    made_for.refuse("ranks", fmt::format("is not {}, of which the list 'ranks' is", ranks.size()));
  }
  for (const json& rank : ranks) {
    map.ranks.push_back(read_rank(rank, fmt::format("{}: rank {}", origin, map.ranks.size()), map));
  }
  require_whole(map);
  find_same(map);
  return map;
}

void require_trainers(const ExportMap& map, std::int64_t trainers) {
  if (static_cast<std::int64_t>(map.ranks.size()) == trainers) return;
  throw UsageError(
      fmt::format("{}: is of {} trainers, but the job has {}; let --trainers say what runs, or let "
                  "the trainers that run publish",
                  map.origin, map.ranks.size(), trainers));
}

}  // namespace weightcast
