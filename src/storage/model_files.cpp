#include "storage/model_files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <set>
#include <system_error>

#include "core/error.hpp"
#include "storage/file_kind.hpp"
#include "storage/input_file.hpp"
#include "storage/safetensors_header.hpp"
#include "storage/safetensors_index.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> paths_in(const std::string& directory,
                               const std::function<bool(std::string_view)>& wanted) {
  std::error_code error;
  std::vector<fs::path> found;
  fs::directory_iterator entry(directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    if (wanted(entry->path().filename().string())) found.push_back(entry->path());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw IoError(fmt::format("cannot list {}: {}; check the permissions", directory, error.message()));
  }
  return found;
}

bool is_regular(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(fs::symlink_status(path, ignored));
}

bool says(const fs::path& path, const std::string& text) {
  const InputFile file(path.string());
  return file.size() == static_cast<std::int64_t>(text.size()) && first_bytes(file, file.size()) == text;
}

}  // namespace

bool is_model_data(std::string_view name) {
  return name.starts_with("model") && name.ends_with(".safetensors");
}

std::string missing_of_saving(const std::vector<std::string>& paths) {
  constexpr std::string_view kOf = "-of-";
  constexpr int kMostFiles = 100'000;
  std::set<std::string> names;
  for (const std::string& path : paths) names.insert(fs::path(path).filename().string());
  for (const std::string& name : names) {
    const std::size_t of = name.rfind(kOf);
    if (of == std::string::npos || of == 0) continue;
    const std::size_t digits = name.find_last_not_of("0123456789", of - 1) + 1;
    int total = 0;
    const char* const behind = name.data() + of + kOf.size();
    const auto [end, error] = std::from_chars(behind, name.data() + name.size(), total);
    if (digits == of || error != std::errc() || total > kMostFiles) continue;
    const auto numbered = [&](int number) {
      return fmt::format("{}{:0{}}{}", name.substr(0, digits), number, of - digits, name.substr(of));
    };
    // Some count from 0 on.
    const int first = names.contains(numbered(0)) ? 0 : 1;
    for (int number = first; number < first + total; ++number) {
      if (!names.contains(numbered(number))) return numbered(number);
    }
  }
  return "";
}

bool ends_as_hdf5(std::string_view path) {
  constexpr std::array<std::string_view, 4> kEnds{".h5", ".hdf5", ".hdf", ".he5"};
  const auto same = [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b - 'A' + 'a' : b); };
  return std::ranges::any_of(kEnds, [&](std::string_view end) {
    return path.size() >= end.size() && std::ranges::equal(end, path.substr(path.size() - end.size()), same);
  });
}

bool is_hdf5_name(std::string_view name) {
  return ends_as_hdf5(name) && !name.starts_with('.');
}

bool is_model_file(std::string_view name) {
  if (name == kSafetensorsSingleName || name == kSafetensorsIndexName) return true;
  constexpr std::string_view kPattern = "model-00000-of-00000.safetensors";
  return std::ranges::equal(name, kPattern,
                            [](char a, char b) { return b == '0' ? a >= '0' && a <= '9' : a == b; });
}

std::vector<fs::path> model_files_in(const std::string& directory) {
  return paths_in(directory, &is_model_file);
}

void require_own_model_files(const std::string& directory, const std::string& config_text) {
  const std::vector<fs::path> data = paths_in(directory, &is_model_data);
  for (const fs::path& path : data) {
    if (!is_own_model_file(path)) refuse_foreign(path);
  }
  const fs::path index = fs::path(directory) / kSafetensorsIndexName;
  if (!is_free(index) && (data.empty() || !is_regular(index))) refuse_foreign(index);
  if (!config_text.empty()) require_own_config(directory, config_text, !data.empty());
}

void require_own_config(const std::string& directory, const std::string& config_text, bool beside_own) {
  const fs::path config = fs::path(directory) / "config.json";
  if (is_free(config)) return;
  if (!is_regular(config) || !(beside_own || says(config, config_text))) refuse_foreign(config);
}

}  // namespace weightcast
