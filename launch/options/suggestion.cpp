#include "launch/options/suggestion.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace weightcast {

namespace {

/// How many letters differ, neighbours that are swapped counting once: the distance of optimal string
/// alignment.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> of(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        of[i][j] = i + j;
        continue;
      }
      of[i][j] =
          std::min({of[i - 1][j] + 1, of[i][j - 1] + 1, of[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        of[i][j] = std::min(of[i][j], of[i - 2][j - 2] + 1);
      }
    }
  }
  return of[a.size()][b.size()];
}

}  // namespace

std::string suggestion(std::string_view typed, std::span<const std::string_view> names) {
  constexpr std::size_t kLongest = 64;  // what is longer is no name that was mistyped
  if (typed.empty() || typed.size() > kLongest) return "";
  // What was cut off is likelier than what was mistyped; of several the shortest is what the others go on
  // from.
  constexpr std::size_t kEnough = 3;
  const std::size_t dashes = std::min(typed.find_first_not_of('-'), typed.size());
  std::string_view whole;
  for (const std::string_view name : names) {
    if (name.starts_with(typed) && (whole.empty() || name.size() < whole.size())) whole = name;
  }
  if (!whole.empty() && typed.size() - dashes >= kEnough) return fmt::format("; did you mean {}?", whole);
  std::size_t least = 3;
  std::string_view closest;
  for (const std::string_view name : names) {
    const std::size_t letters = distance(typed, name);
    if (letters < least && 2 * letters < name.size()) {
      least = letters;
      closest = name;
    }
  }
  return closest.empty() ? "" : fmt::format("; did you mean {}?", closest);
}

}  // namespace weightcast
