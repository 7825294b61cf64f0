#include "storage/file_kind.hpp"

#include <fmt/format.h>

#include <system_error>
#include <variant>

#include "core/error.hpp"
#include "storage/hdf5_attributes.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/safetensors_header.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

fs::file_type type_of(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::symlink_status(path, error).type();
  if (type != fs::file_type::not_found && error) {
    throw IoError(
        fmt::format("cannot look at {}: {}; see to that, or remove it", path.string(), error.message()));
  }
  return type;
}

/// None for what is no file that this program could have written.
Attributes attributes_of(const fs::path& path) {
  if (type_of(path) != fs::file_type::regular) return {};
  try {
    // A hidden name does not say which it is.
    return has_hdf5_signature(path.string()) ? read_hdf5_attributes(path.string())
                                             : read_safetensors_attributes(path.string());
  } catch (const IoError& error) {
    throw IoError(fmt::format("{}; if this file is not meant, remove it", error.what()));
  } catch (const InputError& error) {
    // The library does not say whether the system refused it something or the file is damaged.
    if (has_hdf5_signature(path.string())) {
      throw IoError(fmt::format("{}; if this file is not meant, remove it", error.what()));
    }
    return {};
  }
}

/// Nothing where they name no kind.
const std::string* kind_of(const Attributes& attributes) {
  const auto found = attributes.find("kind");
  return found == attributes.end() ? nullptr : std::get_if<std::string>(&found->second);
}

}  // namespace

bool is_file_of_kind(const fs::path& path, std::string_view kind) {
  const Attributes attributes = attributes_of(path);
  const std::string* said = kind_of(attributes);
  return said != nullptr && *said == kind;
}

bool is_own_model_file(const fs::path& path) {
  return !attributes_of(path).empty();
}

bool is_free(const fs::path& path) {
  return type_of(path) == fs::file_type::not_found;
}

void require_free_or_own(const fs::path& path, std::string_view kind) {
  if (!is_free(path) && !is_file_of_kind(path, kind)) refuse_foreign(path);
}

void require_free_or_own(const fs::path& path, const Attributes& attributes) {
  if (const std::string* kind = kind_of(attributes); kind != nullptr) require_free_or_own(path, *kind);
}

void refuse_foreign(const fs::path& path) {
  throw IoError(
      fmt::format("cannot write {}: what is there does not say that this program wrote it; remove it, or "
                  "name another place",
                  path.string()));
}

}  // namespace weightcast
