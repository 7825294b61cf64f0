#pragma once

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <fstream>
#include <functional>
#include <initializer_list>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>

#include "core/error.hpp"
#include "model/family.hpp"

namespace weightcast {

inline std::string text_of(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::string config_path(const std::string& model) {
  return fmt::format("{}/models/{}/config.json", WEIGHTCAST_TEST_DATA, model);
}

inline std::unique_ptr<Family> exported_family(const std::string& model) {
  return make_family(ModelConfig(text_of(config_path(model)), config_path(model)));
}

inline std::unique_ptr<Family> family_of(const nlohmann::json& config) {
  return make_family(ModelConfig(config.dump(), "x/config.json"));
}

inline nlohmann::json tiny_moe() {
  return nlohmann::json::parse(text_of(config_path("tiny-qwen3-moe")));
}

/// What an InputError (or another kind of error) says.
template <typename Expected = InputError>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return "";
  }
  ADD_FAILURE() << "no error";
  return "";
}

inline void expect_has(const std::string& text, std::initializer_list<std::string_view> words) {
  for (const std::string_view word : words) {
    EXPECT_NE(text.find(word), std::string::npos) << "'" << word << "' is not in: " << text;
  }
}

}  // namespace weightcast
