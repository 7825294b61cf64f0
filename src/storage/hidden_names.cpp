#include "storage/hidden_names.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "core/hash.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kIdDigits = 16;
// What file systems allow.
constexpr std::size_t kLongestName = 255;
// Three dots and the id.
constexpr std::size_t kLongestStem =
    kLongestName - 3 - kIdDigits - std::max({kPartial.size(), kOld.size(), kJournal.size()});

bool is_id(std::string_view text) {
  return text.size() == kIdDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// The extension of a name, without its dot.
std::string_view last_part(std::string_view name) {
  return name.substr(std::min(name.size(), name.rfind('.') + 1));
}

}  // namespace

std::string fresh_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

std::string hidden_stem(const std::string& name) {
  if (name.size() <= kLongestStem) return name;
  const std::string end = fmt::format("~{:016x}", hash_text(name));
  std::size_t kept = kLongestStem - end.size();
  // Not amid a character: there are file systems that take nothing but UTF-8.
  while (kept > 0 && (static_cast<unsigned char>(name[kept]) & 0xc0U) == 0x80) --kept;
  return name.substr(0, kept) + end;
}

std::string hidden_path(const std::string& path, std::string_view id, std::string_view kind) {
  const fs::path final_path(path);
  return (final_path.parent_path() /
          fmt::format(".{}.{}.{}", hidden_stem(final_path.filename().string()), id, kind))
      .string();
}

HiddenName parse_hidden(std::string_view name) {
  const HiddenName none{name, {}, {}};
  const std::string_view kind = last_part(name);
  if (!name.starts_with('.') || (kind != kPartial && kind != kOld && kind != kJournal)) return none;
  const std::string_view rest = name.substr(1, name.size() - 1 - kind.size() - 1);
  const std::string_view id = last_part(rest);
  if (!is_id(id) || id.size() >= rest.size()) return none;
  return {rest.substr(0, rest.size() - id.size() - 1), kind, id};
}

std::string directory_of(const std::string& path) {
  const std::string directory = fs::path(path).parent_path().string();
  return directory.empty() ? "." : directory;
}

}  // namespace weightcast
