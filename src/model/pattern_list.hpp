#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace weightcast {

/// Patterns of a config file that many names are held against: regular expressions, and texts in which `*`
/// stands for anything. Whoever wrote them, the work of all calls together is bounded.
class PatternList {
 public:
  PatternList();
  ~PatternList();
  PatternList(PatternList&&) noexcept;
  PatternList& operator=(PatternList&&) noexcept;

  /// `origin` names the pattern in messages. Throw InputError when it is too long, is no regular expression,
  /// or is one pattern too many.
  void add_expression(std::string_view expression, std::string origin);
  void add_glob(std::string_view glob, std::string origin);

  /// Whether an expression fits the beginning of `name`, as in Python's re.match(), or a glob all of it.
  /// Throws InputError naming the pattern that would take too long.
  bool match(std::string_view name);

 private:
  struct Patterns;
  std::unique_ptr<Patterns> patterns_;
};

}  // namespace weightcast
