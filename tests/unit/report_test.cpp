#include <gtest/gtest.h>

#include <fcntl.h>
#include <stdlib.h>
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
#include "report/json_report.hpp"
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
  JobReport plain;
  plain.ranks.push_back({0, "trainer", "host", "device"});
  JobReport forged = plain;
  forged.model = forged.layout = forged.versions = kForged;
  forged.ranks.front() = {0, "trainer", kForged, kForged};
  const std::string text = header_text(forged);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  const std::string other = header_text(plain);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), std::count(other.begin(), other.end(), '\n'));
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
