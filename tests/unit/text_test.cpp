// Texts from elsewhere: JSON that is wrong, costly or not quite JSON, and characters that a terminal obeys.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "core/text.hpp"

namespace weightcast {
namespace {

std::string refusal(const std::string& text, const JsonLimits& limits = {}) {
  try {
    parse_json(text, "config.json", limits);
  } catch (const InputError& error) {
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << text.substr(0, 200);
  return "";
}

void expect_refused(const std::string& text, const std::string& why, const JsonLimits& limits = {}) {
  const std::string line = refusal(text, limits);
  EXPECT_NE(line.find("config.json: "), std::string::npos) << line;
  EXPECT_NE(line.find(why), std::string::npos) << line;
  EXPECT_EQ(line, printable(line));
}

TEST(JsonText, SaysWhatIsWrongAndWhere) {
  expect_refused("// edited by hand\n{}", "line 1, column 1: a comment");
  expect_refused("{\"a\": 1,\n  # why\n \"b\": 2}", "line 2, column 3: a comment");
  expect_refused("{\"a\": 1 /* why */}", "line 1, column 9: a comment");
  expect_refused("{\"a\": [1,2,],\n}", "line 1, column 12: a comma before ']'");
  expect_refused("{\"a\": 1,\n}", "line 2, column 1: a comma before '}'");
  expect_refused("{\"a\":\n", "line 2, column 1: the text ends before its object does");
  expect_refused("{\"a\": \"un", "ends before its object does");
  expect_refused("{'a': 1}", "line 1, column 2: a text in single quotes");
  expect_refused("{\"a\": nan}", "line 1, column 8");
  expect_refused("{\"a\": True}", "'True'; JSON writes true");
  expect_refused("{\"a\": None}", "'None'; JSON writes null");
  expect_refused("{\u201ca\u201d: 1}", "'\u201c' (U+201C) is not expected; type it anew");
  expect_refused(std::string("\xff\xfe\0\0{\0\0\0", 8), "UTF-32");
  expect_refused("{} {}", "line 1, column 4: '{' is not expected");
  expect_refused("{\"a\": 1e999}", "a number is too large");
  expect_refused("{\x1b[31m\"a\": 1}", "'\\x1b' is not expected");
  expect_refused("{\"a\": \"\xff\"}", "line 1, column 8");
  expect_refused("[1]", "must begin with '{'");
  expect_refused("7", "must begin with '{'");
}

TEST(JsonText, ColumnsAreThoseOfTheTextAsItWasWritten) {
  JsonLimits limits;
  limits.python_numbers = true;
  expect_refused("{\"a\": NaN, \"b\": -Infinity, }", "line 1, column 28: a comma before '}'", limits);
  expect_refused("{\"a\": NaNx}", "line 1, column 10: 'x'", limits);
  expect_refused("{\"a\": [NaN, Infinity],\n\"b\": NaN; 1}", "line 2, column 9: ';'", limits);
  expect_refused("{\"Größe\": 1,}", "line 1, column 13: a comma");
  expect_refused(
      "{\"a\": \"gr\xf6\xdf"
      "e\"}",
      "line 1, column 10: the byte \\xf6 is no UTF-8");
  expect_refused("{\"a\": \"\xe9\"}",
                 "line 1, column 8: the byte \\xe9 is no UTF-8 (is the text in Latin-1?)");
  expect_refused("{\"a\": \"\\ud800\"}", "line 1, column 8: \\ud800 is half of a character");
  expect_refused("{\"a\": \"\\ud83dx\"}", "line 1, column 8: \\ud83d is half");
  expect_refused("{\"a\": \"\\ud83d\\u0041\"}", "line 1, column 8: \\ud83d is half");
  expect_refused("{\"a\": \"\\udc00\"}", "line 1, column 8: \\udc00 is half");
  expect_refused("{\"a\": \"two\nlines\"}", "line 1, column 11: '\\n' within a text; write \\u000a");
}

TEST(JsonText, SaysWhichEncodingAndThatAFileIsEmpty) {
  expect_refused(std::string("\xff\xfe{\0}\0", 6), "UTF-16; save it as UTF-8");
  expect_refused("{" + std::string(40, '\0'), "a byte 0 in the text; it is damaged, copy it again");
  expect_refused(std::string("\xfe\xff\0{\0}", 6), "UTF-16; save it as UTF-8");
  expect_refused(std::string("{\0}\0", 4), "UTF-16 or UTF-32");
  expect_refused(std::string("\0\0\0{", 4), "UTF-16 or UTF-32");
  expect_refused(std::string("{\"a\": 1}\0 {", 11), "a byte 0");
  expect_refused("", "empty");
  expect_refused(" \n\t", "empty");
  expect_refused("\xef\xbb\xbf", "empty");
  EXPECT_EQ(parse_json("\xef\xbb\xbf{\"a\": 1}", "x")["a"], 1);
}

TEST(JsonText, WorkIsBounded) {
  const auto start = std::chrono::steady_clock::now();
  for (const char* open : {"[", "{\"a\":", "[[", "{\"a\":[", "[{\"b\":"}) {
    std::string text = "{\"a\":";
    while (text.size() < 10'000'000) text += open;
    expect_refused(text, "nested more than 64 levels deep");
  }
  // Sixty-four levels are allowed, the outermost object among them.
  EXPECT_NO_THROW(parse_json("{\"a\":" + std::string(63, '[') + std::string(63, ']') + "}", "x"));
  expect_refused("{\"a\":" + std::string(64, '[') + std::string(64, ']') + "}", "nested more than 64");
  std::string wide = "{\"a\":[1";
  while (wide.size() < 10'000'000) wide += ",1";
  expect_refused(wide + "]}", "more than 1000000 values");
  expect_refused(std::string(20'000'000, ' ') + "{}", "20000002 bytes");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(JsonText, NamesThatOccurTwice) {
  EXPECT_EQ(parse_json(R"({"a":1,"a":2})", "x")["a"], 2);
  JsonLimits limits;
  limits.unique_names = true;
  expect_refused(R"({"a":1,"a":2})", "'a' occurs twice", limits);
  expect_refused("{\"b\":{\"a\\u001b\":1,\"a\\u001b\":2}}", "'a\\x1b' occurs twice", limits);
  EXPECT_NO_THROW(parse_json(R"({"a":{"a":1},"b":{"a":1},"c":[{"a":1},{"a":2}]})", "x", limits));
}

TEST(JsonText, NumbersOfPython) {
  expect_refused("{\"a\": NaN}", "'N' is not expected");
  JsonLimits limits;
  limits.python_numbers = true;
  const auto json = parse_json(
      R"({"a": NaN, "b": [Infinity, -Infinity], "c": "NaN \" Infinity", "d": {"NaN": 1}})", "x", limits);
  EXPECT_EQ(json["a"], "NaN");
  EXPECT_EQ(json["b"][0], "Infinity");
  EXPECT_EQ(json["b"][1], "-Infinity");
  EXPECT_EQ(json["c"], "NaN \" Infinity");
  EXPECT_EQ(json["d"]["NaN"], 1);
}

TEST(Printable, KeepsTextAndShowsWhatTerminalsObey) {
  for (const char* text : {"", "model.layers.0", "Größe → 数", "a\\x1b", "\U0001f600"}) {
    EXPECT_EQ(printable(text), text);
  }
  EXPECT_EQ(printable("a\x1b[2J\r\n\tb"), "a\\x1b[2J\\r\\n\\tb");
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\x7f"), "\\x7f");
  // A control character of two bytes, one that turns the line round, and a line separator.
  EXPECT_EQ(printable("\u009b31m"), "\\x9b31m");
  EXPECT_EQ(printable("a\u202eb\u2066"), "a\\u202eb\\u2066");
  EXPECT_EQ(printable("\u2028"), "\\u2028");
  EXPECT_EQ(printable("a\u061cb\u200bc\u00add\ufeff"), "a\\u061cb\\u200bc\\xadd\\ufeff");
  EXPECT_EQ(printable("\U000e0041\U0001d173"), "\\U000e0041\\U0001d173");
  // No UTF-8: a byte alone, a cut character, a longer form of '/', half of a pair.
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\xe2\x82"), "\\xe2\\x82");
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");
  const std::string once = printable("\x1b\xff\u202e\n");
  EXPECT_EQ(printable(once), once);
}

TEST(Excerpt, IsShortWholeCharactersFitForATerminal) {
  EXPECT_EQ(excerpt("a\nb"), "a\\nb");
  EXPECT_EQ(excerpt(std::string(80, 'x')), std::string(80, 'x'));
  EXPECT_EQ(excerpt(std::string(81, 'x')), std::string(80, 'x') + "…");
  EXPECT_EQ(excerpt(std::string(79, 'x') + "éé"), std::string(79, 'x') + "…");
}

TEST(OneLine, BoundsWhatAMessageQuotesAndKeepsItsRemedy) {
  EXPECT_EQ(one_line("a\nb"), "a\\nb");
  const std::string path = "/" + std::string(398, 'x');
  EXPECT_EQ(one_line(path + ": why; do this"), path + ": why; do this");
  const std::string cut = one_line(path + "yz: why; do this");
  EXPECT_EQ(cut.size(), 400 + std::string(" why; do this").size()) << cut;
  EXPECT_TRUE(cut.starts_with("/xxx")) << cut;
  EXPECT_TRUE(cut.ends_with("xxxyz: why; do this")) << cut;
  const std::string marks = one_line(std::string(10'000, '\x1b') + "; do this");
  EXPECT_LE(marks.size(), 420U);
  EXPECT_TRUE(marks.ends_with("; do this")) << marks;
  std::string blanks;
  while (blanks.size() < 100'000) blanks += "é é\xff ";
  const std::string line = one_line(blanks + "; do this");
  EXPECT_LE(line.size(), 4000U);
  EXPECT_GT(line.size(), 3900U);
  EXPECT_TRUE(line.ends_with("; do this"));
  EXPECT_EQ(first_no_utf8(line), std::string::npos);
  for (const std::string& once : {cut, marks, line}) EXPECT_EQ(one_line(once), once);
}

TEST(OneLine, IsWhatAnErrorSays) {
  const InputError error(std::string(10'000, 'x') + '\0' + "\n: bad; mend it");
  EXPECT_LE(std::string_view(error.what()).size(), 500U);
  EXPECT_TRUE(std::string_view(error.what()).ends_with("\\x00\\n: bad; mend it")) << error.what();
}

}  // namespace
}  // namespace weightcast
