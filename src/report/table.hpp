#pragma once

#include <string>
#include <vector>

namespace weightcast {

/// Text columns, aligned: the first left, the others right. Cells are made printable; columns are two spaces
/// apart.
class Table {
 public:
  explicit Table(std::vector<std::string> header);
  void add(std::vector<std::string> row);
  /// Every line begins with `indent`.
  std::string text(const std::string& indent = "") const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace weightcast
