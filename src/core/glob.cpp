#include "core/glob.hpp"

namespace weightcast {

namespace {

constexpr std::size_t kNone = std::string_view::npos;

/// Where the set whose bracket is at `at` closes; kNone where it does not. A bracket right behind the opening
/// one, or behind its `!`, is of the set.
std::size_t end_of_set(std::string_view glob, std::size_t at) {
  std::size_t first = at + 1;
  if (first < glob.size() && glob[first] == '!') ++first;
  return glob.find(']', first + 1);
}

/// Whether a character is in the set that `glob` has from `first` to before `end`.
bool is_in_set(std::string_view set, char c) {
  for (std::size_t i = 0; i < set.size(); ++i) {
    const bool range = i + 2 < set.size() && set[i + 1] == '-';
    if (range ? set[i] <= c && c <= set[i + 2] : set[i] == c) return true;
    if (range) i += 2;
  }
  return false;
}

/// Whether a set has a range without characters, as `z-a`.
bool has_empty_range(std::string_view set) {
  for (std::size_t i = 0; i + 2 < set.size(); ++i) {
    if (set[i + 1] != '-') continue;
    if (static_cast<unsigned char>(set[i]) > static_cast<unsigned char>(set[i + 2])) return true;
    i += 2;
  }
  return false;
}

/// Whether what a glob has at `at`, which is no star, fits a character; `at` is then behind it.
bool takes(std::string_view glob, std::size_t& at, char c) {
  if (at == glob.size()) return false;
  if (glob[at] == '[') {
    const std::size_t end = end_of_set(glob, at);
    const bool others = glob[at + 1] == '!';
    const std::size_t first = at + (others ? 2 : 1);
    if (is_in_set(glob.substr(first, end - first), c) == others) return false;
    at = end + 1;
    return true;
  }
  if (glob[at] != '?' && glob[at] != c) return false;
  ++at;
  return true;
}

}  // namespace

bool fits_glob(std::string_view glob, std::string_view name) {
  std::size_t at = 0;
  std::size_t from = 0;  // of the name
  std::size_t behind_star = kNone;
  std::size_t retry = 0;  // what the last star has taken ends before it
  while (from < name.size()) {
    if (at < glob.size() && glob[at] == '*') {
      behind_star = ++at;
      retry = from;
    } else if (takes(glob, at, name[from])) {
      ++from;
    } else if (behind_star != kNone) {
      // Only the last star can take more to any avail.
      at = behind_star;
      from = ++retry;
    } else {
      return false;
    }
  }
  while (at < glob.size() && glob[at] == '*') ++at;
  return at == glob.size();
}

std::string wrong_in_glob(std::string_view glob) {
  if (glob.empty()) return "is empty";
  for (std::size_t at = 0; at < glob.size(); ++at) {
    if (glob[at] != '[') continue;
    const std::size_t end = end_of_set(glob, at);
    if (end == kNone) return "has a [ without its ]";
    std::string_view set = glob.substr(at + 1, end - at - 1);
    // Where others mean all but these, a ^ must not mean these and itself.
    if (set.starts_with('^')) return "has [^, and all but the characters of a set is [! here";
    if (set.starts_with('!')) set.remove_prefix(1);
    if (has_empty_range(set)) return "has a range that ends before it begins";
    at = end;
  }
  return "";
}

}  // namespace weightcast
