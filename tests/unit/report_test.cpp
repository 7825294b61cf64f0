#include <gtest/gtest.h>

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>

#include "core/error.hpp"
#include "measure/measured.hpp"
#include "report/activity.hpp"
#include "report/json_report.hpp"
#include "report/lines.hpp"
#include "report/log.hpp"
#include "report/progress.hpp"
#include "report/svg.hpp"
#include "report/table.hpp"
#include "report/update_report.hpp"

namespace weightcast {

namespace {

/// What could take a terminal over, and what could pass for a line of this program.
const std::string kForged = "x\x1b[2J\r\nweightcast: error: forged\x07";
const std::string kShown = R"(x\x1b[2J\r\nweightcast: error: forged\x07)";

/// Stderr is that descriptor, which it closes, or is closed, while it lives.
class OtherStderr {
 public:
  explicit OtherStderr(int other) : kept_(::dup(STDERR_FILENO)) {
    if (other < 0) ::close(STDERR_FILENO);
    if (other >= 0) ::dup2(other, STDERR_FILENO);
    if (other >= 0) ::close(other);
  }
  ~OtherStderr() {
    ::dup2(kept_, STDERR_FILENO);
    ::close(kept_);
  }
  OtherStderr(const OtherStderr&) = delete;
  OtherStderr& operator=(const OtherStderr&) = delete;

 private:
  int kept_;
};

std::string printed(const std::function<void()>& print) {
  ::testing::internal::CaptureStdout();
  print();
  return ::testing::internal::GetCapturedStdout();
}

std::string logged(const std::function<void()>& log) {
  ::testing::internal::CaptureStderr();
  log();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Report, JsonOfAnyBytes) {
  const std::string text = json_report({{"path", "a\xff/\xe2\x82"}, {"n", 1}});
  EXPECT_EQ(nlohmann::json::parse(text).at("path"), R"(a\xff/\xe2\x82)");
  EXPECT_EQ(text.back(), '\n');
  EXPECT_EQ(json_report({{"a", {1, 2}}}, -1), "{\"a\":[1,2]}\n");
}

TEST(Report, JsonWithoutCharactersThatMislead) {
  const std::string name = "\x7f\u009b31m\u202eabc\u061c\U000e0041";
  const std::string text = json_report({{name, name}, {"\xff", 1}, {"\xfe", 2}}, -1);
  EXPECT_TRUE(std::all_of(text.begin(), text.end() - 1, [](char c) { return c >= ' ' && c < 0x7f; })) << text;
  EXPECT_NE(text.find(R"(\u007f\u009b31m\u202eabc\u061c\udb40\udc41)"), std::string::npos) << text;
  const nlohmann::json parsed = nlohmann::json::parse(text);
  EXPECT_EQ(parsed.at(name), name);
  // Names that differ in what is no text still differ.
  EXPECT_EQ(parsed.at(R"(\xff)"), 1);
  EXPECT_EQ(parsed.at(R"(\xfe)"), 2);
}

TEST(Report, TheReportOfAJobOfAnyBytes) {
  JobReport report;
  report.updates.emplace_back().source = "\xff";
  EXPECT_EQ(nlohmann::json::parse(report_json(report, "internal", "\xfe")).at("error"), R"(\xfe)");
}

TEST(Report, LinesCannotBeForged) {
  EXPECT_EQ(printed([] { print_line("# " + kForged); }), "# " + kShown + "\n");
  EXPECT_EQ(logged([] { log_note(kForged); }), "weightcast: " + kShown + "\n");
  EXPECT_EQ(logged([] { log_error(kForged); }), "weightcast: error: " + kShown + "\n");
  // What is readable stays so.
  EXPECT_EQ(printed([] { print_line("3 × 4 → “ü”"); }), "3 × 4 → “ü”\n");
}

TEST(Report, CellsCannotBeForged) {
  Table table({"tensor", kForged});
  table.add({kForged, "1"});
  const std::string text = table.text("# ");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_NE(text.find("# " + kShown + "  "), std::string::npos) << text;
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

TEST(Report, HeadsOfJobsCannotBeForged) {
  JobReport forged;
  forged.model = forged.layout = forged.versions = kForged;
  forged.ranks.push_back({0, "trainer", kForged, kForged});
  const std::string text = header_text(forged);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  // What is too wide is broken at its blanks, into more lines of the header.
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_TRUE(line.starts_with("#")) << line;
}

TEST(Report, ALogThatNobodyCanReadIsNoReasonToFail) {
  for (const int descriptor : {-1, ::open("/dev/full", O_WRONLY)}) {
    const OtherStderr other(descriptor);
    EXPECT_NO_THROW(log_error("a"));
    EXPECT_NO_THROW(log_note("b"));
    set_open_line(true);
    EXPECT_NO_THROW(end_open_line());
  }
}

TEST(Report, ATerminalThatIsGoneIsNoReasonToFail) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_EQ(::grantpt(terminal) | ::unlockpt(terminal), 0);
  const OtherStderr other(::open(::ptsname(terminal), O_RDWR | O_NOCTTY));
  Progress progress(ProgressMode::kAlways, true);
  progress.begin(1, 100);
  ::close(terminal);
  // As long as it takes until the line is written again.
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  EXPECT_NO_THROW(progress.advance(1));
  EXPECT_NO_THROW(progress.end());
}

/// What is written to a terminal that many characters wide.
std::string shown_on_terminal(unsigned short columns, const std::function<void()>& write) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  EXPECT_EQ(::grantpt(terminal) | ::unlockpt(terminal), 0);
  winsize size{24, columns, 0, 0};
  EXPECT_EQ(::ioctl(terminal, TIOCSWINSZ, &size), 0);
  std::string text(4096, '\0');
  {
    const OtherStderr other(::open(::ptsname(terminal), O_RDWR | O_NOCTTY));
    write();
    // While somebody still has it open: it would be gone after that.
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(0, ::read(terminal, text.data(), text.size()))));
  }
  ::close(terminal);
  return text;
}

TEST(Report, ProgressStaysOnOneLineOfANarrowTerminal) {
  ::unsetenv("COLUMNS");
  const auto write = [] {
    Progress progress(ProgressMode::kAlways, true);
    progress.begin("checkpoint.h5", std::int64_t{100} << 30);
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    progress.advance(std::int64_t{1} << 30);
    progress.end();
  };
  const std::string narrow = shown_on_terminal(60, write);
  ASSERT_TRUE(narrow.starts_with("\rweightcast: checkpoint.h5: 1.00 GiB of 100 GiB, 1 %")) << narrow;
  const std::string line = narrow.substr(1, narrow.find('\x1b') - 1);
  EXPECT_LT(width_of(line), 60);
  EXPECT_EQ(line.find("left"), std::string::npos) << line;
  EXPECT_NE(shown_on_terminal(120, write).find(" s left"), std::string::npos);
  // What does not fit at all is cut.
  const std::string tiny = shown_on_terminal(30, write);
  EXPECT_EQ(tiny.substr(1, tiny.find('\x1b') - 1),
            std::string("weightcast: checkpoint.h5: 1.00 GiB").substr(0, 29));
}

TEST(Report, AnActivityIsSaidOnceItTakesLong) {
  const auto said = [](ProgressMode mode, bool enabled) {
    return logged([&] {
      Activity activity(mode, enabled);
      activity.begin("a short one");
      activity.begin("building the plan");
      std::this_thread::sleep_for(std::chrono::milliseconds(2300));
      const Activity::Scope scope(activity);
    });
  };
  EXPECT_EQ(said(ProgressMode::kAuto, true), "weightcast: building the plan, 2 s\n");
  EXPECT_EQ(said(ProgressMode::kNever, true), "");
  EXPECT_EQ(said(ProgressMode::kAuto, false), "");
}

TEST(Report, FiguresInSixCharacters) {
  EXPECT_EQ(figure_text(0.00012), "0.0001");
  EXPECT_EQ(figure_text(41.34), "41.340");
  EXPECT_EQ(figure_text(9.99999), "10.000");
  EXPECT_EQ(figure_text(123.456), "123.46");
  EXPECT_EQ(figure_text(12345.6), "12346");
}

TEST(Report, RowsStandBelowTheirHeads) {
  UpdateRecord update;
  update.weight_version = 123456789;
  update.seconds = {41.34, 0, 0.0007, 1234.5, 0, 9.5, 99999};
  update.rate_gb_s = 1234.5;
  update.bound.stage = "source";
  const std::string row = update_text(update);
  std::istringstream heads(update_columns());
  std::string head;
  std::getline(heads, head);
  std::getline(heads, head);
  EXPECT_EQ(row.size(), head.size() + 1);
  EXPECT_LE(head.size(), kLineWidth);
  EXPECT_EQ(row.find("source") + 6, head.find("slowest") + 7);
  EXPECT_EQ(row.find("no\n") + 2, head.find("verified") + 8);
}

TEST(Report, AReportThatNobodyCanReadIs) {
  const int kept = ::dup(STDOUT_FILENO);
  const int full = ::open("/dev/full", O_WRONLY);
  ::dup2(full, STDOUT_FILENO);
  EXPECT_THROW(print_line("a"), IoError);
  ::dup2(kept, STDOUT_FILENO);
  ::close(full);
  ::close(kept);
}

TEST(Measured, MediansAndTheirAbsence) {
  EXPECT_EQ((Measured{"three", {3, 1, 2}, 0}.median_seconds()), 2);
  EXPECT_EQ((Measured{"one", {4}, 0}.median_seconds()), 4);
  EXPECT_THROW((Measured{"nothing", {}, 0}.median_seconds()), InternalError);
  EXPECT_THROW((Measured{"nothing", {}, 1}.gb_s()), InternalError);
  EXPECT_THROW(fastest({}), InternalError);
}

/// The tree of an SVG file. Throws where it is no XML.
boost::property_tree::ptree parse_xml(const std::string& text) {
  std::istringstream stream(text);
  boost::property_tree::ptree tree;
  boost::property_tree::read_xml(stream, tree);
  return tree;
}

TEST(Picture, TakesTextsFromAnywhere) {
  const std::string hostile =
      "</text><script>alert(1)</script>&\"'" + kForged + "\xff\xef\xbf\xbe\xed\xa0\x80";
  Svg svg(hostile, hostile, 100, 50);
  svg.rect({1, 2, 3, 4}, "bar", 0.5, hostile);
  svg.text(1, 2, hostile, "ink", SvgAnchor::kEnd);
  const std::string file = svg.file();
  EXPECT_TRUE(file.starts_with(Svg::kBeginning));
  EXPECT_EQ(file.find("<script"), std::string::npos);
  EXPECT_TRUE(
      std::ranges::none_of(file, [](char c) { return (c >= 0 && c < ' ' && c != '\n') || c == 0x7f; }));
  const auto tree = parse_xml(file).get_child("svg");
  const auto shown = tree.get<std::string>("text");
  EXPECT_EQ(shown, R"(</text><script>alert(1)</script>&"')" + kShown + R"(\xff\uffff\xed\xa0\x80)");
  EXPECT_EQ(tree.get<std::string>("title"), shown);
  EXPECT_EQ(tree.get<std::string>("desc"), shown);
  EXPECT_EQ(tree.get<std::string>("<xmlattr>.role"), "img");
}

TEST(Picture, LongTextsLoseTheirMiddle) {
  EXPECT_EQ(shortened("abcdefgh", 8), "abcdefgh");
  EXPECT_EQ(shortened("abcdefghi", 8), "abcd…ghi");
  EXPECT_EQ(shortened("äöüäöüäöü", 5), "äö…öü");
  EXPECT_EQ(shortened("", 5), "");
}

TEST(Picture, SaysThatItIsNotDrawnYet) {
  const auto tree = parse_xml(unfinished_picture("weightcast plan")).get_child("svg");
  EXPECT_NE(tree.get<std::string>("text").find("not drawn yet"), std::string::npos);
}

}  // namespace

}  // namespace weightcast
