#include "model/layer_counts.hpp"

#include <fmt/format.h>

#include <charconv>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

std::vector<std::int64_t> parse_layer_counts(const std::string& option, std::string_view text) {
  std::vector<std::int64_t> counts;
  const char* at = text.data();
  const char* const last = at + text.size();
  for (bool more = true; more;) {
    constexpr std::int64_t kMost = 100'000;
    std::int64_t count = 0;
    const auto [end, status] = std::from_chars(at, last, count);
    more = end != last && *end == ',';
    if (status != std::errc() || count < 0 || count > kMost || (!more && end != last)) {
      throw UsageError(fmt::format(
          "{} {}: cannot read '{}'; write the number of layers of every stage, for example "
          "12,14,14,12",
          option, excerpt(text), excerpt(std::string_view(at, static_cast<std::size_t>(last - at)))));
    }
    counts.push_back(count);
    at = end + 1;
  }
  return counts;
}

}  // namespace weightcast
