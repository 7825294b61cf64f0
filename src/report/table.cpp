#include "report/table.hpp"

#include <algorithm>
#include <utility>

#include "core/text.hpp"
#include "report/lines.hpp"

namespace weightcast {

Table::Table(std::vector<std::string> header, std::set<std::size_t> left) : left_(std::move(left)) {
  add(std::move(header));
}

void Table::add(std::vector<std::string> row) {
  for (std::string& cell : row) cell = printable(cell);
  rows_.push_back(std::move(row));
}

std::string Table::text(const std::string& indent) const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line = indent;
    std::size_t last = 0;  // where the last column begins
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i > 0) line += "  ";
      last = width_of(line);
      const std::string blanks(widths[i] - width_of(row[i]), ' ');
      const bool left = left_.contains(i);
      line.append(left ? row[i] : blanks).append(left ? blanks : row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    if (left_.contains(row.size() - 1)) {
      std::string below = indent;
      below.append(last - width_of(indent), ' ');
      line = wrapped(line, kLineWidth, below);
    }
    text += line + "\n";
  }
  return text;
}

}  // namespace weightcast
