#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"
#include "core/json_fields.hpp"
#include "core/json_text.hpp"
#include "core/shape.hpp"

namespace weightcast {

/// The most bytes of a landing map or an export map that are read.
inline constexpr std::size_t kMostMapBytes = std::size_t{256} << 20;
inline constexpr JsonLimits kMapLimits{
    .bytes = kMostMapBytes, .depth = 16, .values = 40'000'000, .unique_names = true};

/// The most boxes of a tensor that a map may make: far more than experts, heads and stages cut one into.
inline constexpr std::size_t kMostMapBoxes = std::size_t{1} << 17;

/// Whether a text is the key of a map: a SHA-256, 64 hexadecimal digits.
bool is_map_key(std::string_view text);

/// A tensor as a map lists it.
struct NamedTensor {
  std::string name;
  DType dtype = DType::kBF16;
  Shape shape;
};

/// The fields of an object of a map. What is wrong is an InputError, as JsonFields has it.
class MapFields : public JsonFields {
 public:
  using JsonFields::JsonFields;

  /// A list that may be left out.
  const nlohmann::json& optional_list(const char* name) const;

  /// A text that people are told of.
  std::string name(const char* field) const;
  std::vector<std::string> names(const char* field) const;

  /// Field `key`.
  std::string key() const;

  DType dtype() const;
  /// Of so few elements that they can be counted in bytes.
  Shape shape() const;

  /// A list of tensors with `name`, `dtype` and `shape`, each name once.
  std::vector<NamedTensor> tensors(const char* list) const;
  /// The number of one of `count` tensors.
  std::uint32_t tensor(const nlohmann::json& value, std::size_t count, const char* field) const;

  /// Just `count` numbers from 0 on.
  std::vector<std::int64_t> box(const nlohmann::json& list, std::size_t count, const char* field) const;

 private:
  std::string checked(std::string value, const char* field) const;
};

}  // namespace weightcast
