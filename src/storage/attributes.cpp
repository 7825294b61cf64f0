#include "storage/attributes.hpp"

#include <charconv>
#include <filesystem>
#include <system_error>
#include <variant>

#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/model_files.hpp"
#include "storage/safetensors_header.hpp"

namespace weightcast {

Attributes read_attributes(const std::string& path) {
  // A file is known by its content; of what is neither the name says which format it should have had.
  const bool hdf5 = has_hdf5_signature(path) || is_hdf5_name(std::filesystem::path(path).filename().string());
  return hdf5 ? read_hdf5_attributes(path) : read_safetensors_attributes(path);
}

std::optional<std::int64_t> integer_in(const Attributes& attributes, const std::string& name) {
  const auto found = attributes.find(name);
  if (found == attributes.end()) return std::nullopt;
  if (const auto* number = std::get_if<std::int64_t>(&found->second)) return *number;
  const std::string& text = std::get<std::string>(found->second);
  std::int64_t number = 0;
  const char* const last = text.data() + text.size();
  const auto [end, status] = std::from_chars(text.data(), last, number);
  return status == std::errc() && end == last ? std::optional(number) : std::nullopt;
}

std::string text_in(const Attributes& attributes, const std::string& name) {
  const auto found = attributes.find(name);
  if (found == attributes.end()) return "";
  const auto* number = std::get_if<std::int64_t>(&found->second);
  return number != nullptr ? std::to_string(*number) : std::get<std::string>(found->second);
}

}  // namespace weightcast
