#include "model/pattern_list.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace weightcast {

namespace {

// Far above what configs hold. Together they bound the memory, and the steps bound the time to seconds.
constexpr std::size_t kMostPatterns = 10'000;
constexpr std::size_t kMostLength = 4096;
constexpr std::size_t kMostCompiledBytes = 16 << 10;
constexpr std::uint32_t kMostHeapKiB = 1024;
constexpr std::int64_t kSteps = std::int64_t{1} << 28;  ///< of all matches of a list together
constexpr std::uint32_t kFirstSteps = 8;                ///< of one match; when it needs more,
constexpr std::uint32_t kMoreSteps = 8;                 ///< it is tried again with so many times as many
constexpr std::uint32_t kMostSteps = 1 << 20;           ///< of one match

struct Release {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

struct Expression {
  std::unique_ptr<pcre2_code, Release> code;
  std::string origin;
};

struct Glob {
  std::string text;
  std::string origin;
};

/// Python reads `{,3}` as `{0,3}`, the library as five characters.
bool has_open_repeat(std::string_view expression) {
  for (std::size_t at = expression.find("{,"); at != expression.npos; at = expression.find("{,", at + 1)) {
    const std::size_t end = expression.find_first_not_of("0123456789", at + 2);
    if (end != expression.npos && expression[end] == '}') return true;
  }
  return false;
}

bool fits(std::string_view glob, std::string_view name) {
  const std::size_t first = glob.find('*');
  if (first == glob.npos) return glob == name;
  const std::string_view tail = glob.substr(glob.rfind('*') + 1);
  if (!name.starts_with(glob.substr(0, first))) return false;
  name.remove_prefix(first);
  if (!name.ends_with(tail)) return false;
  name.remove_suffix(tail.size());
  // What stands between two stars is found as early as it can be.
  glob.remove_prefix(first + 1);
  for (std::size_t star = glob.find('*'); star != glob.npos; star = glob.find('*')) {
    const std::size_t at = name.find(glob.substr(0, star));
    if (at == name.npos) return false;
    name.remove_prefix(at + star);
    glob.remove_prefix(star + 1);
  }
  return true;
}

}  // namespace

struct PatternList::Patterns {
  std::vector<Expression> expressions;
  std::vector<Glob> globs;
  std::unique_ptr<pcre2_match_context, Release> context{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_match_data, Release> data{pcre2_match_data_create(1, nullptr)};
  std::int64_t steps = kSteps;

  void require_room(std::string_view text, const std::string& origin) const {
    if (text.size() > kMostLength) {
      throw InputError(
          fmt::format("{} is longer than {} characters; list the modules by name", origin, kMostLength));
    }
    if (expressions.size() + globs.size() == kMostPatterns) {
      throw InputError(
          fmt::format("{} is one pattern more than {}; list the modules by name", origin, kMostPatterns));
    }
  }

  void spend(std::int64_t count, const std::string& origin) {
    steps -= count;
    if (steps >= 0) return;
    throw InputError(
        fmt::format("{}: it takes too long to hold all modules against this and the other patterns; write "
                    "simpler ones, or list the modules by name",
                    origin));
  }

  /// Steps are allowed in ever larger portions, so that what a match is charged is near to what it took.
  bool fits_beginning(const Expression& expression, std::string_view name) {
    for (std::uint32_t limit = kFirstSteps; limit <= kMostSteps; limit *= kMoreSteps) {
      spend(limit, expression.origin);
      pcre2_set_match_limit(context.get(), limit);
      const int found = pcre2_match(expression.code.get(), reinterpret_cast<PCRE2_SPTR>(name.data()),
                                    name.size(), 0, 0, data.get(), context.get());
      if (found >= 0) return true;
      if (found == PCRE2_ERROR_NOMATCH) return false;
      if (found != PCRE2_ERROR_MATCHLIMIT) break;
    }
    throw InputError(fmt::format(
        "{} takes too long to match; write it without repeats inside repeats, or list the modules by name",
        expression.origin));
  }
};

PatternList::PatternList() : patterns_(std::make_unique<Patterns>()) {
  if (!patterns_->context || !patterns_->data) throw std::bad_alloc();
  pcre2_set_heap_limit(patterns_->context.get(), kMostHeapKiB);
}

PatternList::~PatternList() = default;
PatternList::PatternList(PatternList&&) noexcept = default;
PatternList& PatternList::operator=(PatternList&&) noexcept = default;

void PatternList::add_expression(std::string_view expression, std::string origin) {
  patterns_->require_room(expression, origin);
  if (has_open_repeat(expression)) {
    throw InputError(fmt::format("{}: write a repeat that begins at nothing as {{0,…}}", origin));
  }
  int error = 0;
  std::size_t at = 0;
  // Bytes: what is matched are names of modules. An expression must not turn that off again.
  std::unique_ptr<pcre2_code, Release> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                    PCRE2_ANCHORED | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, &error, &at, nullptr));
  if (!code) {
    std::array<PCRE2_UCHAR, 256> words{};
    pcre2_get_error_message(error, words.data(), words.size());
    throw InputError(fmt::format(
        "{} is no regular expression: {} at character {}; correct it, or list the modules by name", origin,
        reinterpret_cast<const char*>(words.data()), at + 1));
  }
  std::size_t bytes = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_SIZE, &bytes);
  if (bytes > kMostCompiledBytes) {
    throw InputError(fmt::format("{} repeats too much; list the modules by name", origin));
  }
  patterns_->expressions.push_back({std::move(code), std::move(origin)});
}

void PatternList::add_glob(std::string_view glob, std::string origin) {
  patterns_->require_room(glob, origin);
  // Stars in a row are one. So what lies between two takes a part of the name, which bounds the work.
  std::string text(glob);
  text.erase(std::unique(text.begin(), text.end(), [](char a, char b) { return a == '*' && b == '*'; }),
             text.end());
  patterns_->globs.push_back({std::move(text), std::move(origin)});
}

bool PatternList::match(std::string_view name) {
  Patterns& patterns = *patterns_;
  return std::any_of(patterns.globs.begin(), patterns.globs.end(),
                     [&](const Glob& glob) {
                       constexpr std::int64_t kCharactersOfAStep = 16;
                       patterns.spend(2 + static_cast<std::int64_t>(glob.text.size()) / kCharactersOfAStep,
                                      glob.origin);
                       return fits(glob.text, name);
                     }) ||
         std::any_of(patterns.expressions.begin(), patterns.expressions.end(),
                     [&](const Expression& expression) { return patterns.fits_beginning(expression, name); });
}

}  // namespace weightcast
