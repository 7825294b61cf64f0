#include "storage/hdf5_attributes.hpp"

#include <fmt/format.h>

#include <new>

#include "core/error.hpp"
#include "storage/hdf5_file.hpp"
#include "storage/hdf5_trial.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

std::string prefixed(const std::string& name) {
  return std::string(kAttributePrefix) + name;
}

// A text of variable length has no bound on its size; one of fixed length has to fit in an object header.
Hdf5Type text_type() {
  Hdf5Type type(WEIGHTCAST_HDF5(H5Tcopy(H5T_C_S1), "HDF5 types"));
  WEIGHTCAST_HDF5(H5Tset_size(type.get(), H5T_VARIABLE), "HDF5 types");
  WEIGHTCAST_HDF5(H5Tset_cset(type.get(), H5T_CSET_UTF8), "HDF5 types");
  return type;
}

std::string read_text(const Hdf5Attribute& attribute, const Hdf5Type& type, const std::string& subject) {
  if (WEIGHTCAST_HDF5(H5Tis_variable_str(type.get()), subject) > 0) {
    char* text = nullptr;
    WEIGHTCAST_HDF5(H5Aread(attribute.get(), type.get(), &text), subject);
    std::string copy(text != nullptr ? text : "");
    H5free_memory(text);
    return copy;
  }
  std::string text(H5Tget_size(type.get()), '\0');
  WEIGHTCAST_HDF5(H5Aread(attribute.get(), type.get(), text.data()), subject);
  // Padded with zeros or spaces, according to the type.
  const char padding = H5Tget_strpad(type.get()) == H5T_STR_SPACEPAD ? ' ' : '\0';
  if (padding == '\0') {
    text.resize(std::min(text.size(), text.find('\0')));
  } else {
    text.resize(text.find_last_not_of(padding) + 1);
  }
  return text;
}

AttributeValue read_value(const Hdf5Attribute& attribute, const std::string& name,
                          const std::string& subject) {
  const Hdf5Type type(WEIGHTCAST_HDF5(H5Aget_type(attribute.get()), subject));
  const Hdf5Space space(WEIGHTCAST_HDF5(H5Aget_space(attribute.get()), subject));
  if (WEIGHTCAST_HDF5(H5Sget_simple_extent_npoints(space.get()), subject) == 1) {
    const H5T_class_t kind = H5Tget_class(type.get());
    if (kind == H5T_STRING) return read_text(attribute, type, subject);
    if (kind == H5T_INTEGER) {
      std::int64_t number = 0;
      WEIGHTCAST_HDF5(H5Aread(attribute.get(), H5T_NATIVE_INT64, &number), subject);
      std::uint64_t magnitude = 0;
      WEIGHTCAST_HDF5(H5Aread(attribute.get(), H5T_NATIVE_UINT64, &magnitude), subject);
      // The library cuts off what a type cannot hold.
      if (number >= 0 && magnitude != static_cast<std::uint64_t>(number)) {
        throw InputError(fmt::format("{}: attribute '{}' is {}, beyond 63 bits; write the file again",
                                     subject, prefixed(name), magnitude));
      }
      return number;
    }
  }
  throw InputError(fmt::format("{}: attribute '{}' is neither one integer nor one text; write the file again",
                               subject, prefixed(name)));
}

// Called by C code, which no exception may cross.
herr_t collect_name(hid_t /*object*/, const char* name, const H5A_info_t* /*info*/, void* names) {
  try {
    static_cast<std::vector<std::string>*>(names)->emplace_back(name);
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return 0;
}

}  // namespace

void write_hdf5_attribute(hid_t object, const std::string& name, const AttributeValue& value,
                          const std::string& subject) {
  const auto* text = std::get_if<std::string>(&value);
  const Hdf5Space space(WEIGHTCAST_HDF5(H5Screate(H5S_SCALAR), subject));
  const Hdf5Type type =
      text != nullptr ? text_type() : Hdf5Type(WEIGHTCAST_HDF5(H5Tcopy(H5T_STD_I64LE), subject));
  const Hdf5Attribute attribute(WEIGHTCAST_HDF5(
      H5Acreate2(object, prefixed(name).c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
      subject));
  if (text != nullptr) {
    const char* pointer = text->c_str();
    WEIGHTCAST_HDF5(H5Awrite(attribute.get(), type.get(), &pointer), subject);
  } else {
    WEIGHTCAST_HDF5(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &std::get<std::int64_t>(value)), subject);
  }
}

std::optional<AttributeValue> read_hdf5_attribute(hid_t object, const std::string& name,
                                                  const std::string& subject) {
  if (WEIGHTCAST_HDF5(H5Aexists(object, prefixed(name).c_str()), subject) == 0) return std::nullopt;
  const Hdf5Attribute attribute(
      WEIGHTCAST_HDF5(H5Aopen(object, prefixed(name).c_str(), H5P_DEFAULT), subject));
  return read_value(attribute, name, subject);
}

Attributes read_hdf5_attributes(hid_t object, const std::string& subject) {
  std::vector<std::string> names;
  hsize_t position = 0;
  WEIGHTCAST_HDF5(H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_NATIVE, &position, collect_name, &names),
                  subject);
  Attributes attributes;
  for (const std::string& name : names) {
    if (!name.starts_with(kAttributePrefix)) continue;
    const std::string bare = name.substr(kAttributePrefix.size());
    if (auto value = read_hdf5_attribute(object, bare, subject)) attributes.emplace(bare, std::move(*value));
  }
  return attributes;
}

Attributes read_hdf5_attributes(const std::string& path) {
  const Hdf5Lock lock;
  const auto read = [&] {
    const OpenHdf5 file = open_hdf5(path);
    return read_hdf5_attributes(file.file.get(), path);
  };
  require_survivable(path, InputFile(path).size(), read);
  return read();
}

}  // namespace weightcast
