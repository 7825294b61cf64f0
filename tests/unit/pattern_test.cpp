// Patterns from files of others: what fits, and that none costs more than its limits.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/pattern_list.hpp"

namespace weightcast {

namespace {

bool expression_fits(const std::string& expression, const std::string& name) {
  PatternList list;
  list.add_expression(expression, "e");
  return list.match(name);
}

bool glob_fits(const std::string& glob, const std::string& name) {
  PatternList list;
  list.add_glob(glob, "g");
  return list.match(name);
}

/// What an InputError says; empty when there is none.
std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(Patterns, ExpressionsFitFromTheBeginningAsInPython) {
  EXPECT_TRUE(expression_fits("model", "model.layers"));
  EXPECT_FALSE(expression_fits("layers", "model.layers"));
  EXPECT_TRUE(expression_fits(".*layers$", "model.layers"));
  EXPECT_TRUE(expression_fits("", "model"));
  EXPECT_TRUE(expression_fits("a|b", "b.c"));
  EXPECT_FALSE(expression_fits("a|b", "c.b"));
  EXPECT_TRUE(expression_fits("(?P<x>[a-z]+)\\.(?P=x)$", "up.up"));
  EXPECT_FALSE(expression_fits("(?P<x>[a-z]+)\\.(?P=x)$", "up.down"));
  EXPECT_TRUE(expression_fits("(?!.*experts).*proj", "mlp.up_proj"));
  EXPECT_FALSE(expression_fits("(?!.*experts).*proj", "mlp.experts.3.up_proj"));
  EXPECT_TRUE(expression_fits("(?=.*up).*proj$", "mlp.up_proj"));
  EXPECT_TRUE(expression_fits("(?i)MODEL\\.\\d{1,2}\\b", "model.42.x"));
  EXPECT_FALSE(expression_fits("\\d{3}", "42"));
  EXPECT_TRUE(expression_fits("[^\xc3\xa9]+$", "ascii"));
}

TEST(Patterns, StarsStandForAnything) {
  EXPECT_TRUE(glob_fits("*", ""));
  EXPECT_TRUE(glob_fits("*", "a.b"));
  EXPECT_TRUE(glob_fits("a*", "a"));
  EXPECT_TRUE(glob_fits("*b", "ab"));
  EXPECT_FALSE(glob_fits("*b", "abc"));
  EXPECT_FALSE(glob_fits("a*", "ba"));
  EXPECT_TRUE(glob_fits("a*c*e", "abcde"));
  EXPECT_FALSE(glob_fits("a*e*c", "abcde"));
  // What one star took is not taken again.
  EXPECT_FALSE(glob_fits("ab*ba", "aba"));
  EXPECT_TRUE(glob_fits("ab*ba", "abba"));
  EXPECT_FALSE(glob_fits("*ab*ab*", "xab"));
  EXPECT_TRUE(glob_fits("a***b", "ab"));
  // All else is itself.
  EXPECT_FALSE(glob_fits("a.c*", "abc"));
  EXPECT_TRUE(glob_fits("a[0](x)?*", "a[0](x)?y"));
  EXPECT_FALSE(glob_fits("name", "name2"));
}

TEST(Patterns, WhatIsNoExpressionIsRefused) {
  for (const char* expression :
       {"(", "[a", "*", "a{2,1}", "(?P<x>a)(?P<x>b)", "(?P=y)", "\\", "(?<=a+)b", "(*UTF)a", "a{,3}"}) {
    const std::string line = refusal([&] { expression_fits(expression, "a"); });
    EXPECT_EQ(line.substr(0, 1), "e") << expression;
  }
  EXPECT_NE(refusal([] { expression_fits("a(b", "a"); }).find("no regular expression"), std::string::npos);
}

TEST(Patterns, SizesHaveLimits) {
  const auto repeated = [](const std::string& text, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += text;
    return all;
  };
  const std::vector<std::string> costly{std::string(5000, 'a'), repeated("(", 2000) + repeated(")", 2000),
                                        "((((a{1,99}){1,99}){1,99}){1,99})", "(?:abcdefgh){5000}"};
  for (const std::string& expression : costly) {
    EXPECT_NE(refusal([&] { expression_fits(expression, "a"); }), "") << expression.substr(0, 40);
  }
  EXPECT_NE(refusal([&] { glob_fits(std::string(5000, '*'), "a"); }).find("longer"), std::string::npos);
  PatternList list;
  const std::string line = refusal([&] {
    for (int i = 0; i < 20'000; ++i) list.add_glob("a*", "g");
  });
  EXPECT_NE(line.find("10000"), std::string::npos) << line;
}

TEST(Patterns, NoneTakesForEver) {
  const std::string name = "model.layers.17.mlp.experts.123.gate_proj";
  const auto start = std::chrono::steady_clock::now();
  for (const char* expression : {"([a-z_0-9.]+)+X", "([a-z_0-9.]+)+(X|Y)", "(.*)*(X|Y)$",
                                 "(a|a|[a-z_0-9.])*(X|Y)$", "(?:(?:[a-z_0-9.])+.?)+(X|Y)", "(?R)a",
                                 "(?=([a-z_0-9.]+)+(X|Y))", ".*.*.*.*.*.*.*(X|Y)", "(?:.?){64}.{64}(X|Y)"}) {
    const std::string line = refusal([&] { EXPECT_FALSE(expression_fits(expression, name)); });
    EXPECT_TRUE(line.empty() || line.find("too long") != std::string::npos) << line;
  }
  EXPECT_NE(refusal([&] { expression_fits("(.*)*(X|Y)$", name); }), "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(Patterns, ManyTogetherDoNotEither) {
  PatternList list;
  for (int i = 0; i < 1000; ++i) list.add_expression("[a-z0-9_.]*[a-z0-9_.]*[a-z0-9_.]*(X|Y)$", "e");
  const auto start = std::chrono::steady_clock::now();
  const std::string line = refusal([&] {
    for (int i = 0; i < 20'000; ++i) {
      EXPECT_FALSE(list.match(fmt::format("model.layers.{}.mlp.gate_proj", i)));
    }
  });
  EXPECT_NE(line.find("takes too long"), std::string::npos) << line;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST(Patterns, WhatConfigsHoldIsWithinThem) {
  PatternList list;
  for (int i = 0; i < 300; ++i) list.add_glob(fmt::format("model.layers.{}.self_attn*", i), "g");
  for (const char* expression : {".*lm_head", ".*mlp.gate$", ".*self_attn.*", "re:visual.*"}) {
    list.add_expression(expression, "e");
  }
  int kept = 0;
  for (int i = 0; i < 10'000; ++i) {
    kept += list.match(fmt::format("model.layers.{}.mlp.experts.{}.gate_proj", i % 94, i)) ? 1 : 0;
  }
  EXPECT_EQ(kept, 0);
  EXPECT_TRUE(list.match("model.layers.93.mlp.gate"));
}

}  // namespace

}  // namespace weightcast
