#include "storage/hdf5_dataset.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_types.hpp"

namespace weightcast {

namespace {

/// What a type that the program does not read is called in lists.
std::string type_text(hid_t type) {
  const std::size_t bytes = H5Tget_size(type);
  switch (H5Tget_class(type)) {
    case H5T_STRING:
      return "text";
    case H5T_COMPOUND:
      return "compound";
    case H5T_REFERENCE:
      return "reference";
    case H5T_VLEN:
      return "variable-length";
    case H5T_ARRAY:
      return "array";
    case H5T_ENUM:
      return "enumeration";
    case H5T_OPAQUE:
      return fmt::format("opaque{}", bytes);
    case H5T_BITFIELD:
      return fmt::format("bits{}", 8 * bytes);
    case H5T_FLOAT:
      return fmt::format("float{}", 8 * bytes);
    case H5T_INTEGER:
      return fmt::format("int{}", 8 * bytes);
    default:
      return "unknown type";
  }
}

/// The dtype of a dataset whose type is understood, or nothing and why there is none.
std::optional<DType> dtype_of(hid_t dataset, const Hdf5Element& element, const std::string& subject,
                              std::string& why) {
  std::optional<AttributeValue> attribute;
  try {
    attribute = read_hdf5_attribute(dataset, kDTypeAttribute, subject);
  } catch (const InputError&) {
    why = "has an attribute weightcast.dtype that is no text; set it to what the elements are, as bfloat16";
    return std::nullopt;
  }
  if (!attribute && !element.tag.empty()) {
    why = fmt::format(
        "has opaque elements of {} bytes with the tag '{}', which are not read; set the attribute "
        "weightcast.dtype to what they are, if their bytes are little-endian",
        dtype_bytes(element.dtype), excerpt(element.tag));
    return std::nullopt;
  }
  if (!attribute) return element.dtype;
  const auto* name = std::get_if<std::string>(&*attribute);
  const auto named = name != nullptr ? dtype_from_name(*name) : std::nullopt;
  if (!named) {
    why = fmt::format(
        "has the unknown dtype '{}' in its attribute weightcast.dtype; set it to what the elements are, as "
        "bfloat16",
        name != nullptr ? excerpt(*name) : "(an integer)");
  } else if (!hdf5_may_hold(element, *named)) {
    why = fmt::format(
        "is {} by its attribute weightcast.dtype but {} by its HDF5 type; correct the attribute or remove it",
        *name, dtype_name(element.dtype));
  }
  return why.empty() ? named : std::nullopt;
}

/// The extents of a dataset; nothing where its dataspace is null. Says whether its bytes fit 63 bits.
std::optional<std::vector<std::int64_t>> extents_of(hid_t dataset, const std::string& subject,
                                                    bool& too_large) {
  const Hdf5Space space(WEIGHTCAST_HDF5(H5Dget_space(dataset), subject));
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) return std::nullopt;
  std::array<hsize_t, H5S_MAX_RANK> extents{};
  const int dims = WEIGHTCAST_HDF5(H5Sget_simple_extent_dims(space.get(), extents.data(), nullptr), subject);
  std::vector<std::int64_t> result;
  std::int64_t bytes = 8;  // of the largest element, so that the size in bytes fits too
  for (const hsize_t extent : std::span(extents).first(static_cast<std::size_t>(dims))) {
    if (extent > static_cast<hsize_t>(std::numeric_limits<std::int64_t>::max()) ||
        __builtin_mul_overflow(bytes, static_cast<std::int64_t>(extent), &bytes)) {
      too_large = true;
    }
    result.push_back(static_cast<std::int64_t>(extent));
  }
  return result;
}

}  // namespace

DatasetForm describe_dataset(hid_t dataset, const std::string& subject) {
  const Hdf5Type type(WEIGHTCAST_HDF5(H5Dget_type(dataset), subject));
  const auto element = hdf5_element(type.get());
  bool too_large = false;
  const auto extents = extents_of(dataset, subject, too_large);
  DatasetForm form;
  StoredTensor& tensor = form.tensor;
  const auto add_obstacle = [&](std::string why) {
    const std::string shape = extents ? fmt::format("[{}]", fmt::join(*extents, ", ")) : "without shape";
    tensor.shape = Shape{0};
    tensor.obstacle = std::make_shared<const Obstacle>(Obstacle{
        fmt::format("{} {}", element ? std::string(dtype_name(element->dtype)) : type_text(type.get()),
                    shape),
        std::move(why), false});
  };
  if (!element) {
    add_obstacle(fmt::format("has elements of a type that is not read ({} of HDF5); write it as numbers",
                             type_text(type.get())));
  } else if (!extents) {
    add_obstacle("has no shape (a null dataspace); write it with its values");
  } else if (too_large) {
    add_obstacle("has a shape of more elements than there can be; the file is damaged, copy it again");
  } else if (extents->size() > Shape::kMaxDims) {
    add_obstacle(fmt::format("has {} dimensions, more than the {} that are read; write it with fewer",
                             extents->size(), Shape::kMaxDims));
  } else {
    std::string why;
    const auto dtype = dtype_of(dataset, *element, subject, why);
    if (!dtype) {
      add_obstacle(std::move(why));
      return form;
    }
    tensor.dtype = *dtype;
    tensor.shape = Shape(std::span<const std::int64_t>(*extents));
    form.little_endian = element->little_endian;
  }
  return form;
}

}  // namespace weightcast
