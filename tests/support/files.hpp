#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace weightcast::test_support {

inline std::string get_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

/// Writes a file; makes its folder.
inline void put_file(const std::string& path, std::string_view bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}

/// Changes one bit of the byte at `offset`.
inline void flip_bit(const std::string& path, std::size_t offset) {
  std::string bytes = get_file(path);
  bytes.at(offset) = static_cast<char>(bytes.at(offset) ^ 0x10);
  put_file(path, bytes);
}

/// Relative path and bytes of every file below a folder, hidden ones included; empty when there is no such
/// folder.
inline std::map<std::string, std::string> folder_contents(const std::string& directory) {
  std::map<std::string, std::string> files;
  if (!std::filesystem::exists(directory)) return files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    files[std::filesystem::relative(entry.path(), directory).string()] = get_file(entry.path().string());
  }
  return files;
}

}  // namespace weightcast::test_support
