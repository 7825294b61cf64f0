#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace weightcast {

/// Whether a value is a whole number from `least` on that fits 64 bits.
bool is_whole_number(const nlohmann::json& value, std::int64_t least = 0);

/// Reads the fields of an object in a file that somebody else wrote. What is not as it should be is an
/// InputError that says where, which field, what is wrong with it and what to do.
class JsonFields {
 public:
  /// `where` names the file and the place in it; `remedy` is what helps: `publish again`. `object` must
  /// outlive this.
  JsonFields(const nlohmann::json& object, std::string where, std::string remedy);

  /// Empty when it is not needed and not there.
  std::string text(const char* name, bool needed = true) const;
  std::int64_t number(const char* name, std::int64_t least = 0) const;
  const nlohmann::json& list(const char* name) const;
  /// A list of numbers from 0 on.
  std::vector<std::int64_t> numbers(const char* name) const;
  /// Null when it is not needed and not there.
  const nlohmann::json* find(const char* name, bool needed) const;

  [[noreturn]] void refuse(const char* name, const std::string& what) const;

  const std::string& where() const { return where_; }
  const std::string& remedy() const { return remedy_; }

 private:
  const nlohmann::json& object_;
  std::string where_;
  std::string remedy_;
};

}  // namespace weightcast
