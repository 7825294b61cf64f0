#include "model/landing/landing_proof.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/boxes.hpp"
#include "core/error.hpp"

namespace weightcast {

namespace {

constexpr const char* kRemedy = "learn the map anew with weightcast learn";

void require_within(const Box& box, const Shape& shape, const std::string& where, const std::string& of) {
  if (lies_within(box, shape)) return;
  throw InputError(fmt::format("{}: {} {} has no such box: {}; {}", where, of, shape.to_string(),
                               text_of_extents(box), kRemedy));
}

/// Whether values of one type may become those of another on the way.
bool converts(DType from, DType to) {
  return from == to || (from == DType::kBF16 && to == DType::kF32) ||
         (from == DType::kF32 && to == DType::kBF16);
}

}  // namespace

void TensorReading::require_all(const LandingMap& map, const std::string& where) const {
  for (std::size_t tensor = 0; tensor < done_.size(); ++tensor) {
    const std::uint8_t done = done_[tensor];
    if (done == kRead || done == kLoaded || done == kSkipped) continue;
    throw InputError(fmt::format("{}: tensor {} is {}; {}", where, map.tensors[tensor].name,
                                 done == 0 ? "neither read nor skipped there"
                                           : "read, given to the loader or skipped there, but not just one",
                                 kRemedy));
  }
}

void prove_landing(const LandedParameter& parameter, const LandingMap& map, const std::string& where) {
  if (parameter.loaded) {
    if (parameter.landings.empty() && parameter.zero.empty() && parameter.left.empty()) return;
    throw InputError(fmt::format("{}: is the engine's loader's, and has boxes as well; {}", where, kRemedy));
  }
  std::vector<Box> boxes;
  boxes.reserve(parameter.landings.size() + parameter.zero.size() + parameter.left.size());
  for (const Landing& landing : parameter.landings) {
    const LandedTensor& tensor = map.tensors[landing.tensor];
    require_within(landing.box, tensor.shape, where, "tensor " + tensor.name);
    require_within(landing.place(), parameter.shape, where, "the parameter");
    if (!converts(tensor.dtype, parameter.dtype)) {
      throw InputError(
          fmt::format("{}: {} cannot be made of tensor {}, which is {}; that is for the "
                      "engine's loader: {}",
                      where, dtype_safetensors_name(parameter.dtype), tensor.name,
                      dtype_safetensors_name(tensor.dtype), kRemedy));
    }
    boxes.push_back(landing.place());
  }
  for (const std::vector<Box>* list : {&parameter.zero, &parameter.left}) {
    for (const Box& box : *list) {
      require_within(box, parameter.shape, where, "the parameter");
      boxes.push_back(box);
    }
  }
  if (const auto both = find_overlap(boxes)) {
    throw InputError(fmt::format("{}: two boxes have elements in common: {} and {}; {}", where,
                                 both->first.to_string(), both->second.to_string(), kRemedy));
  }
  if (const auto gap = find_gap(Box::whole(parameter.shape), boxes)) {
    throw InputError(fmt::format("{}: nothing says what goes to row {}, column {} of {}; {}", where, gap->row,
                                 gap->col, parameter.shape.to_string(), kRemedy));
  }
}

void sum_up_reading(LandingMap& map) {
  std::vector<std::vector<Box>> read(map.tensors.size());
  const auto add = [&](std::uint32_t number, const Box& box, DType wanted, const std::string& reader) {
    LandedTensor& tensor = map.tensors[number];
    if (tensor.read && tensor.wanted != wanted) {
      throw InputError(
          fmt::format("{}: tensor {} is read as {}, and as {} by {}; that is for the engine's loader, on all "
                      "ranks: {}",
                      map.origin, tensor.name, dtype_safetensors_name(tensor.wanted),
                      dtype_safetensors_name(wanted), reader, kRemedy));
    }
    tensor.read = true;
    tensor.wanted = wanted;
    read[number].push_back(box);
  };
  for (const LandingRank& rank : map.ranks) {
    for (const LandedParameter& parameter : rank.parameters) {
      for (const Landing& landing : parameter.landings) {
        add(landing.tensor, landing.box, parameter.dtype, "parameter " + parameter.name);
      }
    }
    for (const LoadedTensor& loaded : rank.loader) {
      const LandedTensor& tensor = map.tensors[loaded.tensor];
      add(loaded.tensor, Box::whole(tensor.shape), tensor.dtype, "the loader");
    }
  }
  double work = 2e10;
  for (std::size_t i = 0; i < read.size(); ++i) {
    LandedTensor& tensor = map.tensors[i];
    const auto area = covered_area(read[i], work);
    if (!area) {
      throw InputError(fmt::format("{}: tensor {} is cut into too many pieces by its {} boxes; {}",
                                   map.origin, tensor.name, read[i].size(), kRemedy));
    }
    tensor.unread = tensor.shape.elements() - *area;
  }
}

}  // namespace weightcast
