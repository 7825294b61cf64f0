#include "launch/job/same_options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "core/error.hpp"
#include "core/hash.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

/// Names and values by turns, as they travel: each behind its length and a colon.
std::string packed(const GivenOptions& given) {
  std::string text;
  for (const auto& [name, value] : given)
    text += fmt::format("{}:{}{}:{}", name.size(), name, value.size(), value);
  return text;
}

GivenOptions unpacked(std::string_view text) {
  const auto next = [&] {
    std::size_t length = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
    std::string word(text.substr(0, length));
    text.remove_prefix(length);
    return word;
  };
  GivenOptions given;
  while (!text.empty()) {
    const std::string name = next();
    given[name] = next();
  }
  return given;
}

std::string value_in(const GivenOptions& given, const std::string& name) {
  const auto found = given.find(name);
  return found == given.end() ? "nothing" : fmt::format("'{}'", excerpt(found->second));
}

}  // namespace

void require_same_options(Control& control, const GivenOptions& mine) {
  const std::string text = packed(mine);
  if (control.agreement.is_same(hash_text(text))) return;
  std::vector<GivenOptions> all;
  for (const std::string& given : control.agreement.gather(text)) all.push_back(unpacked(given));
  control.agreement.together([&] {
    if (control.rank() == 0) throw UsageError(difference_of(all));
  });
}

std::string difference_of(const std::vector<GivenOptions>& all) {
  const GivenOptions& first = all.front();
  const auto other = std::ranges::find_if(all, [&](const GivenOptions& given) { return given != first; });
  GivenOptions names = first;
  names.insert(other->begin(), other->end());
  const auto is_same = [&](const std::string& name) {
    const auto one = first.find(name);
    const auto two = other->find(name);
    if (one == first.end() || two == other->end()) return false;
    return one->second == two->second;
  };
  const std::string name =
      std::ranges::find_if_not(names, [&](const auto& option) { return is_same(option.first); })->first;
  return fmt::format(
      "{}: rank 0 was given {}, rank {} {}; give all ranks the same: on several nodes write options on the "
      "command line, or export WEIGHTCAST_* with mpirun -x",
      name.empty() ? "the command" : fmt::format("--{}", name), value_in(first, name), other - all.begin(),
      value_in(*other, name));
}

}  // namespace weightcast
