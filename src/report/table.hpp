#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <vector>

namespace weightcast {

/// Text columns, aligned: those of `left` left, the others right. Cells are made printable; columns are two
/// spaces apart.
class Table {
 public:
  explicit Table(std::vector<std::string> header, std::set<std::size_t> left = {0});
  void add(std::vector<std::string> row);
  /// Every line begins with `indent`. The last column, if it is a left one, is broken at its blanks where a
  /// line would be longer than kLineWidth.
  std::string text(const std::string& indent = "") const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::set<std::size_t> left_;
};

}  // namespace weightcast
