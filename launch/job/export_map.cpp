#include "launch/job/export_map.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "live/published_layout.hpp"
#include "model/map_fields.hpp"
#include "storage/foreign_file.hpp"

namespace weightcast {

namespace {

/// Where the map is; empty without one.
std::string path_of(const Options& options, const std::string& directory, const Manifest& first) {
  if (!options.export_map.empty()) return options.export_map;
  const auto key = published_map(first);
  return key ? fmt::format("{}/export-map-{}.json", directory, *key) : "";
}

std::string read_map(const Options& options, const std::string& path) {
  if (path.empty()) return "";
  try {
    return read_json_file(path, kMostMapBytes);
  } catch (const IoError& error) {
    throw IoError(fmt::format("{}: {}",
                              options.export_map.empty()
                                  ? "the trainers' export map, which is published with their tensors"
                                  : "--export-map",
                              error.what()));
  }
}

std::shared_ptr<const ExportMap> map_of(const std::string& text, const std::string& path,
                                        std::int64_t trainers) {
  if (path.empty()) return nullptr;
  auto map = std::make_shared<ExportMap>(parse_export_map(text, path));
  require_trainers(*map, trainers);
  return map;
}

}  // namespace

std::shared_ptr<const ExportMap> load_export_map(const Options& options, const std::string& directory,
                                                 const Manifest& first, std::int64_t trainers) {
  const std::string path = path_of(options, directory, first);
  return map_of(read_map(options, path), path, trainers);
}

std::shared_ptr<const ExportMap> load_export_map(Control& control, const Options& options,
                                                 const std::string& directory, const Manifest* first,
                                                 std::int64_t trainers) {
  std::string path;
  std::string text;
  control.agreement.together([&] {
    if (control.rank() != 0) return;
    path = path_of(options, directory, *first);
    text = read_map(options, path);
  });
  path = control.agreement.broadcast(path);
  text = control.agreement.broadcast(text);
  std::shared_ptr<const ExportMap> map;
  control.agreement.together([&] { map = map_of(text, path, trainers); });
  return map;
}

}  // namespace weightcast
