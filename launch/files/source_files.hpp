#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "core/error.hpp"
#include "live/folder.hpp"

namespace weightcast {

/// Whether trainers or engines have published in a folder, as far as can be seen.
inline bool holds_manifests(const std::string& folder) {
  std::error_code none;
  if (!std::filesystem::is_directory(folder, none)) return false;
  try {
    return !find_manifests(folder).empty();
  } catch (const IoError&) {
    return false;
  }
}

/// What `read` makes of a source's files. A folder in which trainers or engines have published is likely
/// meant as theirs: an error says so.
template <typename Read>
auto read_files_of(const std::string& source, Read read) {
  try {
    return read();
  } catch (const Error& error) {
    if (!holds_manifests(source)) throw;
    throw Error(error.code(), fmt::format("{}; trainers or engines that run have published there: is live:{} "
                                          "meant?",
                                          error.what(), source));
  }
}

}  // namespace weightcast
