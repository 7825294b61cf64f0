#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast::fuzz {

/// Ends the process, so that libFuzzer keeps the input.
[[noreturn]] inline void broken(std::string_view promise, std::string_view line) {
  std::fprintf(stderr, "promise broken: %s\n%s\n", std::string(promise).c_str(), std::string(line).c_str());
  std::abort();
}

/// Runs what reads an input from elsewhere, which may accept it or refuse it as the program promises: with
/// one line that shows no control characters, names `culprit` (the file or option) and has a code other than
/// that of an internal error. Whatever is thrown beside the program's own errors ends the process, too.
template <typename Read>
void accept_or_refuse(std::string_view culprit, const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    const std::string line = error.what();
    if (error.code() == ExitCode::kInternal) broken("no input is an internal error", line);
    if (line.empty() || one_line(line) != line) broken("an error is one printable line", line);
    if (line.find(culprit) == std::string::npos) broken("an error names its culprit", line);
  }
}

/// What libFuzzer hands over, as text.
inline std::string text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace weightcast::fuzz
