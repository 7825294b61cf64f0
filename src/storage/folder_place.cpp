#include "storage/folder_place.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>
#include <system_error>

namespace weightcast {

namespace fs = std::filesystem;

FolderPlace place_of_folder(const std::string& path) {
  std::error_code error;
  // Absolute first: of a path of which nothing is there the rest would stay relative.
  fs::path whole = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error) whole = fs::absolute(path, error).lexically_normal();
  // "a/" is no other folder than "a".
  if (!whole.has_filename()) whole = whole.parent_path();
  fs::path nearest = whole;
  struct stat there {};
  while (::stat(nearest.c_str(), &there) != 0 && nearest.has_relative_path()) nearest = nearest.parent_path();
  return {whole.string(),
          fmt::format("{}:{}/{}", there.st_dev, there.st_ino, whole.lexically_relative(nearest).string())};
}

bool is_same_folder(const FolderPlace& a, const FolderPlace& b) {
  return a.path == b.path || a.number == b.number;
}

}  // namespace weightcast
