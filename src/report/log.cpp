#include "report/log.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.hpp"

namespace weightcast {

namespace {

std::atomic<bool> quiet = false;
std::atomic<bool> line_is_open = false;

/// One write, so that lines of several processes do not mix.
void write_line(std::string line) {
  end_open_line();
  std::replace(line.begin(), line.end(), '\n', ' ');
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

void set_open_line(bool open) {
  line_is_open = open;
}

void end_open_line() {
  if (line_is_open.exchange(false)) std::fputc('\n', stderr);
}

void set_quiet(bool value) {
  quiet = value;
}
bool is_quiet() {
  return quiet;
}

void print_report(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  throw IoError(fmt::format("the report on stdout cannot be written: {}", std::strerror(errno)));
}

void log_note(std::string_view text) {
  if (!quiet) write_line(fmt::format("weightcast: {}", text));
}

void log_error(std::string_view text) {
  write_line(fmt::format("weightcast: error: {}", text));
}

}  // namespace weightcast
