#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "storage/writer.hpp"

namespace weightcast {

/// What a file says of itself under names that start with `weightcast.`, without that prefix: root attributes
/// of HDF5, texts of safetensors' `__metadata__`. Throws IoError when the file cannot be read, InputError
/// when it is of neither format.
Attributes read_attributes(const std::string& path);

/// An attribute as an integer: safetensors hold one as a decimal text. Nothing where it is missing or is
/// none.
std::optional<std::int64_t> integer_in(const Attributes& attributes, const std::string& name);

/// An attribute as a text; an integer in decimals. Empty where it is missing.
std::string text_in(const Attributes& attributes, const std::string& name);

}  // namespace weightcast
