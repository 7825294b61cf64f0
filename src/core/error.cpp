#include "core/error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/text.hpp"

namespace weightcast {

namespace {

using OptionNames = std::map<std::string, std::string, std::less<>>;

/// Set once, before there are threads.
OptionNames& option_names() {
  static OptionNames names;
  return names;
}

/// The message with every option called as the user called it.
std::string with_option_names(std::string_view message) {
  const auto belongs = [](char c) { return c == '-' || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  std::string result;
  while (!message.empty()) {
    const std::size_t at = std::min(message.find("--"), message.size());
    const bool begins = at == 0 || message[at - 1] == ' ' || message[at - 1] == '(';
    result += message.substr(0, at);
    message.remove_prefix(at);
    if (message.empty()) break;
    std::size_t end = 2;
    while (end < message.size() && belongs(message[end])) ++end;
    const auto found = begins ? option_names().find(message.substr(2, end - 2)) : option_names().end();
    result += found == option_names().end() ? message.substr(0, end) : std::string_view(found->second);
    message.remove_prefix(end);
  }
  return result;
}

std::string system_text(const std::system_error& error) {
  // What starting a thread says where no more are to be had.
  if (error.code() == std::errc::resource_unavailable_try_again) {
    return "the system gives no more threads; raise its limit (ulimit -u, or the job's), or start fewer "
           "ranks";
  }
  if (error.code() == std::errc::not_enough_memory) return error_of(std::bad_alloc()).what();
  return error.what();
}

std::string file_text(const std::filesystem::filesystem_error& error) {
  const std::string path = error.path1().string();
  return fmt::format("{}: {}; check that it is there and that you may use it", path.empty() ? "a file" : path,
                     error.code().message());
}

/// `src/plan/proof.cpp:88`: the compiler was given whole paths.
std::string place_of(const std::source_location& where) {
  std::string_view file = where.file_name();
  for (const std::string_view folder : {"/src/", "/kernels/", "/launch/", "/tests/"}) {
    if (const std::size_t at = file.rfind(folder); at != std::string_view::npos) file.remove_prefix(at + 1);
  }
  return fmt::format("{}:{}", file, where.line());
}

}  // namespace

Error::Error(ExitCode code, const std::string& message)
    : std::runtime_error(one_line(message)), code_(code) {}

InternalError::InternalError(const std::string& message, std::source_location where)
    : Error(ExitCode::kInternal, fmt::format("{} ({})", message, place_of(where))) {}

void call_options(std::map<std::string, std::string, std::less<>> names) {
  option_names() = std::move(names);
}

Error error_of(const std::exception& exception) {
  if (const auto* error = dynamic_cast<const Error*>(&exception)) {
    if (option_names().empty()) return *error;
    return {error->code(), with_option_names(error->what())};
  }
  // A length that no container can have is more memory than there is, too.
  if (dynamic_cast<const std::bad_alloc*>(&exception) != nullptr ||
      dynamic_cast<const std::length_error*>(&exception) != nullptr) {
    return IoError(
        "out of host memory; give the process more (ulimit -v, the job's limit), or use fewer ranks a node "
        "or a "
        "smaller --bucket-size");
  }
  if (const auto* error = dynamic_cast<const std::filesystem::filesystem_error*>(&exception)) {
    return IoError(file_text(*error));
  }
  if (const auto* error = dynamic_cast<const std::system_error*>(&exception)) {
    return IoError(system_text(*error));
  }
  return {ExitCode::kInternal, exception.what()};
}

}  // namespace weightcast
