#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

namespace weightcast {

/// What a JSON text that somebody else wrote may cost before it is refused. The defaults suit a model's
/// `config.json`.
struct JsonLimits {
  std::size_t bytes = std::size_t{16} << 20;  ///< of the text
  std::size_t depth = 64;                     ///< of arrays and objects inside one another
  std::size_t values = 1'000'000;             ///< numbers, texts, arrays and objects together
  bool unique_names = false;                  ///< a name that occurs twice in one object is refused
  /// `NaN`, `Infinity` and `-Infinity`, which Python writes although JSON has no such numbers, are read as
  /// texts of those names. So a field that nobody needs does no harm, and one that is needed is no number.
  bool python_numbers = false;
  bool list = false;  ///< at the top is a list, no object
};

/// The object (or list) that a text holds. `origin` names the text in messages. Throws InputError that says
/// what is wrong and in which line and column: no JSON, another encoding than UTF-8, cut off, comments,
/// something else at the top, or beyond a limit. The work is bounded by the limits, whatever the text holds.
nlohmann::json parse_json(const std::string& text, const std::string& origin, const JsonLimits& limits = {});

}  // namespace weightcast
