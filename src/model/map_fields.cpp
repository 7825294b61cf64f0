#include "model/map_fields.hpp"

#include <fmt/format.h>

#include <set>
#include <span>
#include <utility>

#include "core/text.hpp"
#include "model/catalog.hpp"

namespace weightcast {

using nlohmann::json;

bool is_map_key(std::string_view text) {
  constexpr std::size_t kDigits = 64;
  return text.size() == kDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

const json& MapFields::optional_list(const char* name) const {
  static const json none = json::array();
  return find(name, false) == nullptr ? none : list(name);
}

std::string MapFields::name(const char* field) const {
  return checked(text(field), field);
}

std::vector<std::string> MapFields::names(const char* field) const {
  std::vector<std::string> result;
  for (const json& value : optional_list(field)) {
    if (!value.is_string()) refuse(field, "holds what is no text");
    result.push_back(checked(value.get<std::string>(), field));
  }
  return result;
}

std::string MapFields::key() const {
  std::string key = text("key");
  if (!is_map_key(key)) refuse("key", "is no SHA-256, 64 hexadecimal digits");
  return key;
}

DType MapFields::dtype() const {
  const auto dtype = dtype_from_safetensors(text("dtype"));
  if (!dtype) refuse("dtype", fmt::format("is '{}', which is not known", excerpt(text("dtype"))));
  return *dtype;
}

Shape MapFields::shape() const {
  constexpr std::int64_t kMost = std::int64_t{1} << 50;
  const std::vector<std::int64_t> extents = numbers("shape");
  if (extents.size() > Shape::kMaxDims) {
    refuse("shape", fmt::format("has {} dimensions; at most {} are taken", extents.size(), Shape::kMaxDims));
  }
  std::int64_t elements = 1;
  for (const std::int64_t extent : extents) {
    if (extent < 1 || extent > kMost / elements) refuse("shape", "is of no elements, or of too many");
    elements *= extent;
  }
  return Shape(std::span<const std::int64_t>(extents));
}

std::vector<NamedTensor> MapFields::tensors(const char* list) const {
  std::vector<NamedTensor> tensors;
  std::set<std::string> names;
  double bytes = 0;
  for (const json& object : this->list(list)) {
    const MapFields unnamed(object, fmt::format("{}: tensor number {}", where(), tensors.size()), remedy());
    NamedTensor tensor;
    tensor.name = unnamed.name("name");
    const MapFields fields(object, fmt::format("{}: tensor {}", where(), tensor.name), remedy());
    tensor.dtype = fields.dtype();
    tensor.shape = fields.shape();
    if (!names.insert(tensor.name).second) fields.refuse("name", "is there twice");
    bytes += static_cast<double>(tensor.shape.elements()) * static_cast<double>(dtype_bytes(tensor.dtype));
    tensors.push_back(std::move(tensor));
  }
  require_plausible(where() + ": the tensors", static_cast<double>(tensors.size()), bytes);
  return tensors;
}

std::uint32_t MapFields::tensor(const json& value, std::size_t count, const char* field) const {
  if (!is_whole_number(value) || value.get<std::uint64_t>() >= count) {
    refuse(field, "names a tensor by no number of the list 'tensors'");
  }
  return value.get<std::uint32_t>();
}

std::vector<std::int64_t> MapFields::box(const json& list, std::size_t count, const char* field) const {
  std::vector<std::int64_t> result;
  if (list.is_array() && list.size() == count) {
    for (const json& value : list) {
      if (is_whole_number(value)) result.push_back(value.get<std::int64_t>());
    }
  }
  if (result.size() != count) refuse(field, fmt::format("holds what is no list of {} whole numbers", count));
  return result;
}

std::string MapFields::checked(std::string value, const char* field) const {
  constexpr std::size_t kMostBytes = 1024;
  if (value.empty() || value.size() > kMostBytes || printable(value) != value) {
    refuse(field, fmt::format("is '{}': empty, too long, or with characters that cannot be printed",
                              excerpt(value)));
  }
  return value;
}

}  // namespace weightcast
