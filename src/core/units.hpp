#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weightcast {

/// Bytes of `256MiB`, `1GiB`, `64KiB`, `512MB` or a plain number. Throws UsageError otherwise.
std::int64_t parse_bytes(std::string_view text);

/// `256 MiB`, `61.06 GB`-style text for people: binary units, three significant digits.
std::string format_bytes(std::int64_t bytes);

/// `1 trainer`, `2 trainers`; `word` forms its plural with s.
std::string counted(std::int64_t count, std::string_view word);

/// `value` rounded up to a multiple of `step` (step > 0).
constexpr std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

/// Whether [start, start + count) of an axis of `total` begins or ends amid a unit of `unit`; it may end with
/// the axis.
constexpr bool cuts_unit(std::int64_t start, std::int64_t count, std::int64_t total, std::int64_t unit) {
  return start % unit != 0 || ((start + count) % unit != 0 && start + count != total);
}

/// Ceiling of a / b for positive b.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace weightcast
