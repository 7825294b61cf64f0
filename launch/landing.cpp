#include "launch/landing.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "core/error.hpp"
#include "model/landing/unread_rows.hpp"
#include "model/map_fields.hpp"
#include "report/log.hpp"
#include "storage/foreign_file.hpp"

namespace weightcast {

namespace {

std::string read_map(const std::string& path) {
  try {
    return read_json_file(path, kMostMapBytes);
  } catch (const IoError& error) {
    throw IoError(fmt::format("--landing, what weightcast learn has written: {}", error.what()));
  }
}

/// The map of a text. Says what of the tensors it lets fall.
std::shared_ptr<const LandingMap> map_of(const std::string& text, const std::string& origin, bool speaks) {
  auto map = std::make_shared<LandingMap>(parse_landing_map(text, origin));
  const std::string unread = speaks ? unread_text(*map) : "";
  if (!unread.empty()) log_note(fmt::format("--landing {}: {}", origin, unread));
  return map;
}

}  // namespace

std::shared_ptr<const LandingMap> load_landing(const Options& options) {
  if (options.landing.empty()) return nullptr;
  return map_of(read_map(options.landing), options.landing, true);
}

std::shared_ptr<const LandingMap> load_landing(Control& control, const Options& options) {
  if (options.landing.empty()) return nullptr;
  std::string text;
  control.agreement.together([&] {
    if (control.rank() == 0) text = read_map(options.landing);
  });
  text = control.agreement.broadcast(text);
  std::shared_ptr<const LandingMap> map;
  control.agreement.together([&] { map = map_of(text, options.landing, control.rank() == 0); });
  return map;
}

std::optional<LandingMap> find_landing(const std::string& path) {
  std::error_code none;
  if (!path.ends_with(".json") || !std::filesystem::is_regular_file(path, none)) return std::nullopt;
  const std::string text = read_json_file(path, kMostMapBytes);
  if (text.find("\"landing\":") == std::string::npos) return std::nullopt;
  return parse_landing_map(text, path);
}

}  // namespace weightcast
