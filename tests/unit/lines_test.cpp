#include "report/lines.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>

#include "report/table.hpp"

namespace weightcast {

namespace {

/// $COLUMNS is that, or is not there, while it lives.
class Columns {
 public:
  explicit Columns(const char* value) {
    if (const char* const kept = ::getenv("COLUMNS")) kept_ = kept;
    value == nullptr ? ::unsetenv("COLUMNS") : ::setenv("COLUMNS", value, 1);
  }
  ~Columns() { kept_ ? ::setenv("COLUMNS", kept_->c_str(), 1) : ::unsetenv("COLUMNS"); }
  Columns(const Columns&) = delete;
  Columns& operator=(const Columns&) = delete;

 private:
  std::optional<std::string> kept_;
};

TEST(Lines, WidthCountsCharacters) {
  EXPECT_EQ(width_of(""), 0);
  EXPECT_EQ(width_of("3 × 4 → …"), 9);
}

TEST(Lines, AreBrokenAtBlanks) {
  EXPECT_EQ(wrapped("one two three", 7), "one two\nthree");
  EXPECT_EQ(wrapped("one two three", 8, "  "), "one two\n  three");
  EXPECT_EQ(wrapped("fits", 4), "fits");
  EXPECT_EQ(wrapped("a×b c", 3), "a×b\nc");
  // A word has no place to be broken at.
  EXPECT_EQ(wrapped("a abcdefgh b", 4), "a\nabcdefgh\nb");
}

TEST(Lines, KeepTheirOwnBreaksAndBlanks) {
  EXPECT_EQ(wrapped("# a  b\n#\n# c\n", 80), "# a  b\n#\n# c\n");
  EXPECT_EQ(wrapped("  indented text\nnext", 12, "    "), "  indented\n    text\nnext");
  EXPECT_EQ(wrapped("", 80), "");
}

TEST(Lines, WidthOfATerminal) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(terminal, 0);
  winsize size{24, 132, 0, 0};
  ASSERT_EQ(::ioctl(terminal, TIOCSWINSZ, &size), 0);
  {
    const Columns none(nullptr);
    EXPECT_EQ(line_width(terminal), 132);
    EXPECT_EQ(line_width(-1), kLineWidth);
  }
  for (const auto& [value, width] :
       {std::pair("60", 60), {"0", 132}, {"-5", 132}, {"wide", 132}, {"3", 20}}) {
    const Columns columns(value);
    EXPECT_EQ(line_width(terminal), width) << value;
  }
  ::close(terminal);
}

TEST(Lines, ColumnsOfATableAreCharacters) {
  Table table({"route", "bytes", "receivers"}, {0, 2});
  table.add({"1 →", "7", "2,3"});
  table.add({"12", "100", "4"});
  EXPECT_EQ(table.text("# "),
            "# route  bytes  receivers\n"
            "# 1 →        7  2,3\n"
            "# 12       100  4\n");
}

TEST(Lines, TheLastColumnIsBrokenWhereALineIsTooLong) {
  Table table({"rank", "role"}, {0, 1});
  const std::string role(70, 'x');
  table.add({"0", role + " (replica 0 tp 1)"});
  EXPECT_EQ(table.text("# "), "# rank  role\n# 0     " + role + "\n#       (replica 0 tp 1)\n");
}

}  // namespace

}  // namespace weightcast
