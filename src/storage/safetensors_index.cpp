#include "storage/safetensors_index.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "core/text.hpp"
#include "storage/foreign_file.hpp"
#include "storage/safetensors_header.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostBytes = std::size_t{256} << 20;

/// The same file as a path from the folder on; empty when it is not below the folder, by its name.
std::string below(const fs::path& folder, const std::string& name) {
  if (name.find('\0') != std::string::npos) return "";
  fs::path path = fs::path(name).lexically_normal();
  if (path.is_absolute()) path = path.lexically_relative(fs::absolute(folder).lexically_normal());
  if (path.empty() || !path.has_filename() || *path.begin() == ".." || path == ".") return "";
  return path.string();
}

}  // namespace

SafetensorsIndex read_safetensors_index(const std::string& path) {
  const nlohmann::json parsed =
      parse_json(read_json_file(path, kMostBytes), path, safetensors_limits(kMostBytes));
  const auto map = parsed.find("weight_map");
  if (map == parsed.end() || !map->is_object())
    throw InputError(fmt::format("{}: no object 'weight_map'; copy it again", path));
  if (map->empty()) throw InputError(fmt::format("{}: its weight_map lists nothing; copy it again", path));
  const fs::path folder = fs::path(path).parent_path();
  SafetensorsIndex index;
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string())
      throw InputError(
          fmt::format("{}: tensor '{}': its file is no text; copy the index again", path, excerpt(tensor)));
    const auto& name = file.get_ref<const std::string&>();
    std::string data_file = below(folder, name);
    if (data_file.empty()) {
      throw InputError(fmt::format(
          "{}: tensor '{}': '{}' does not name a file beside the index; write the file's name alone", path,
          excerpt(tensor), excerpt(name)));
    }
    files.insert(data_file);
    index.tensors.emplace_back(tensor, std::move(data_file));
  }
  index.files.assign(files.begin(), files.end());
  return index;
}

}  // namespace weightcast
