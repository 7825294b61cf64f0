#pragma once

#include <string>
#include <variant>

#include "storage/writer.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {

/// The attribute of a dataset that names its dtype, without the prefix.
inline constexpr const char* kDTypeAttribute = "dtype";

/// The root attribute with the weight version, and the one with the text of `config.json`, without the
/// prefix.
inline constexpr const char* kVersionAttribute = "weight_version";
inline constexpr const char* kConfigAttribute = "config";

/// What tells the files of one conversion from those of another: its id.
inline constexpr const char* kConversionAttribute = "conversion";

using AttributeValue = Attributes::mapped_type;

// All of these name attributes without the prefix, and are called under an Hdf5Lock. `subject` is for
// messages: the file, or the file and the dataset.

/// Writes an integer (64 bits) or a text (UTF-8 of variable length, which h5py shows as `str`).
void write_hdf5_attribute(hid_t object, const std::string& name, const AttributeValue& value,
                          const std::string& subject);

/// The attribute, or nothing when the object has none of that name. Throws InputError naming it when it is
/// neither one integer nor one text.
std::optional<AttributeValue> read_hdf5_attribute(hid_t object, const std::string& name,
                                                  const std::string& subject);

/// All attributes whose names start with the prefix.
Attributes read_hdf5_attributes(hid_t object, const std::string& subject);

/// Those of a file's root; takes the lock itself. Throws IoError when the file cannot be read, InputError
/// when it is not HDF5.
Attributes read_hdf5_attributes(const std::string& path);

}  // namespace weightcast
