#include "launch/tensor_choice.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "core/error.hpp"
#include "core/glob.hpp"
#include "core/text.hpp"
#include "core/units.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/options/suggestion.hpp"
#include "live/folder.hpp"
#include "model/chosen_family.hpp"

namespace weightcast {

namespace {

std::vector<std::string> words_of(std::string_view name) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t dot = std::min(name.find('.', at), name.size());
    words.emplace_back(name.substr(at, dot - at));
    at = dot + 1;
  }
  return words;
}

bool is_number(const std::string& word) {
  return !word.empty() && std::ranges::all_of(word, [](unsigned char c) { return std::isdigit(c) != 0; });
}

/// The name with `*` for numbers of layers and experts.
std::string shape_of(std::string_view name) {
  std::vector<std::string> words = words_of(name);
  for (std::string& word : words) {
    if (is_number(word)) word = "*";
  }
  return fmt::format("{}", fmt::join(words, "."));
}

/// The patterns that somebody may have meant: of each kind of tensor all runs of the words of its name, with
/// `*` for what stands before and behind them.
std::set<std::string> possible_patterns(const Catalog& catalog) {
  std::set<std::string> shapes;
  for (const Tensor& tensor : catalog.tensors()) shapes.insert(shape_of(tensor.name));
  std::set<std::string> patterns;
  for (const std::string& shape : shapes) {
    const std::vector<std::string> words = words_of(shape);
    for (std::size_t first = 0; first < words.size(); ++first) {
      std::string pattern = first == 0 ? "" : "*.";
      for (std::size_t last = first; last < words.size(); ++last) {
        pattern += words[last];
        const bool ends = last + 1 == words.size();
        if (!ends) pattern += '.';
        patterns.insert(pattern + (ends ? "" : "*"));
      }
    }
  }
  return patterns;
}

/// Whether a pattern names what begins with one of the prefixes: its own beginning does, or is all of one but
/// the point.
bool is_of(std::string_view glob, const std::vector<std::string>& prefixes) {
  const std::string_view head = glob.substr(0, glob.find_first_of("*?["));
  return std::ranges::any_of(prefixes, [&](const std::string& prefix) {
    return head.starts_with(prefix) || std::string(head) + "." == prefix;
  });
}

/// What a tensor that is left out is counted as: `mtp.*`, `model.visual.*`, `model.layers.61.*`.
std::string group_of(std::string_view name) {
  const std::vector<std::string> words = words_of(name);
  std::size_t count = 1;
  if (words.front() == "model") count = words.size() > 1 && words[1] == "layers" ? 3 : 2;
  if (count >= words.size()) return std::string(name);
  return fmt::format("{}.*",
                     fmt::join(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(count), "."));
}

}  // namespace

TensorPatterns::TensorPatterns(const Options& options) : includes_(!options.include.empty()) {
  const auto add = [&](const char* option, const std::vector<std::string>& globs, bool excludes) {
    for (const std::string& glob : globs) {
      const Pattern& pattern =
          patterns_.emplace_back(Pattern{fmt::format("{} '{}'", option, excerpt(glob)), glob, excludes});
      const std::string wrong = wrong_in_glob(glob);
      if (wrong.empty()) continue;
      throw UsageError(fmt::format("{}: {}; write a pattern of tensors' names such as *.experts.*",
                                   pattern.option, wrong));
    }
  };
  add("--include", options.include, false);
  add("--exclude", options.exclude, true);
}

bool TensorPatterns::leave_out(std::string_view name) const {
  bool included = !includes_;
  for (const Pattern& pattern : patterns_) {
    if (pattern.excludes == included && fits_glob(pattern.glob, name)) {
      if (pattern.excludes) return true;
      included = true;
    }
  }
  return !included;
}

std::unique_ptr<Family> TensorPatterns::choose(std::unique_ptr<Family> family) {
  if (!any()) return family;
  const Catalog& catalog = family->catalog();
  std::vector<bool> chosen;
  chosen.reserve(catalog.size());
  for (const Tensor& tensor : catalog.tensors()) chosen.push_back(!leave_out(tensor.name));
  for (Pattern& pattern : patterns_) {
    pattern.matched = std::ranges::any_of(
        catalog.tensors(), [&](const Tensor& tensor) { return fits_glob(pattern.glob, tensor.name); });
    const bool left_out = is_of(pattern.glob, family->left_out());
    if (pattern.excludes && left_out) pattern.matched = true;
    if (pattern.matched || pattern.excludes) continue;
    if (left_out) {
      throw UsageError(
          fmt::format("{}: fits only what is left out of this model, and never sent; leave the "
                      "pattern out",
                      pattern.option));
    }
    refuse(pattern, catalog);
  }
  if (std::ranges::find(chosen, true) == chosen.end()) {
    throw UsageError(fmt::format("{}: nothing of the model's {} is left to send; write narrower patterns",
                                 patterns_.back().option, counted(std::ssize(catalog.tensors()), "tensor")));
  }
  return make_chosen_family(std::move(family), chosen,
                            [patterns = *this](std::string_view name) { return patterns.leave_out(name); });
}

std::vector<std::string> TensorPatterns::unmatched() const {
  std::vector<std::string> globs;
  for (const Pattern& pattern : patterns_) {
    if (!pattern.matched) globs.push_back(pattern.glob);
  }
  return globs;
}

void TensorPatterns::require_matched(const Catalog& catalog, std::span<const std::int64_t> fits) const {
  std::size_t number = 0;
  for (const Pattern& pattern : patterns_) {
    if (!pattern.matched && fits[number++] == 0) refuse(pattern, catalog);
  }
}

void TensorPatterns::refuse(const Pattern& pattern, const Catalog& catalog) {
  const std::string any_number = shape_of(pattern.glob);
  if (std::ranges::any_of(catalog.tensors(),
                          [&](const Tensor& tensor) { return fits_glob(any_number, tensor.name); })) {
    throw UsageError(fmt::format(
        "{}: fits no tensor of the model, which has no layer or expert of that number", pattern.option));
  }
  const std::set<std::string> possible = possible_patterns(catalog);
  const std::vector<std::string_view> names(possible.begin(), possible.end());
  const std::string meant = suggestion(pattern.glob, names);
  const std::string& example = catalog[static_cast<std::uint32_t>(catalog.size() / 2)].name;
  throw UsageError(fmt::format("{}: fits no tensor of the model{}", pattern.option,
                               meant.empty() ? fmt::format(", one of which is called {}", example) : meant));
}

std::vector<std::int64_t> fits_any(std::span<const std::string> globs, std::span<const LeftOut> tensors) {
  std::vector<std::int64_t> fits;
  for (const std::string& glob : globs) {
    fits.push_back(
        std::ranges::any_of(tensors, [&](const LeftOut& tensor) { return fits_glob(glob, tensor.name); })
            ? 1
            : 0);
  }
  return fits;
}

std::string choice_text(const Choice& choice) {
  return fmt::format("{} of {} tensors, {}; the others, {}, stay as they are", choice.tensors,
                     choice.tensors + choice.staying_tensors, format_bytes(choice.bytes),
                     format_bytes(choice.staying_bytes));
}

std::string compared_text(const Family& family) {
  const Choice* const choice = family.choice();
  if (choice == nullptr) return "";
  return fmt::format(": {} of {} tensors", choice->tensors, choice->tensors + choice->staying_tensors);
}

nlohmann::ordered_json choice_json_of(const Family& family) {
  return family.choice() == nullptr ? nlohmann::ordered_json(nullptr) : choice_json(*family.choice());
}

std::string left_out_text(std::span<const LeftOut> tensors) {
  struct Group {
    std::string name;
    std::int64_t count = 0;
    std::int64_t bytes = 0;
  };
  std::map<std::string, Group> by_name;
  std::int64_t bytes = 0;
  for (const LeftOut& tensor : tensors) {
    Group& group = by_name[group_of(tensor.name)];
    ++group.count;
    group.bytes += tensor.bytes;
    bytes += tensor.bytes;
  }
  std::vector<Group> groups;
  for (auto& [name, group] : by_name) {
    group.name = name;
    groups.push_back(group);
  }
  std::ranges::stable_sort(groups, std::ranges::greater(), &Group::bytes);
  constexpr std::size_t kMostNamed = 3;
  std::vector<std::string> named;
  for (std::size_t i = 0; i < std::min(groups.size(), kMostNamed); ++i) {
    named.push_back(fmt::format("{} ({})", excerpt(groups[i].name), groups[i].count));
  }
  if (groups.size() > kMostNamed) named.emplace_back("…");
  return fmt::format("{}, {}: {}", counted(std::ssize(tensors), "tensor"), format_bytes(bytes),
                     fmt::join(named, ", "));
}

void require_no_files(const Options& options, const Family& family) {
  if (family.choice() == nullptr || options.sink == "none" || live_directory(options.sink)) return;
  throw UsageError(fmt::format(
      "--sink {}: files of shards hold all of a version, but --include or --exclude leaves {} of {} tensors "
      "out; leave the patterns out, or write to live:DIR",
      excerpt(options.sink), family.choice()->staying_tensors,
      family.choice()->staying_tensors + family.choice()->tensors));
}

}  // namespace weightcast
