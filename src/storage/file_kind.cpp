#include "storage/file_kind.hpp"

#include <string>
#include <system_error>
#include <variant>

#include "core/error.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/writer.hpp"

namespace weightcast {

bool is_file_of_kind(const std::filesystem::path& path, std::string_view kind) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(std::filesystem::symlink_status(path, ignored))) return false;
  try {
    const Attributes attributes = path.extension() == ".safetensors"
                                      ? read_safetensors_attributes(path.string())
                                      : read_attributes(path.string());
    const auto found = attributes.find("kind");
    const auto* said = found == attributes.end() ? nullptr : std::get_if<std::string>(&found->second);
    return said != nullptr && *said == kind;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace weightcast
