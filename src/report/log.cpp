#include "report/log.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

std::atomic<bool> quiet = false;
std::atomic<bool> report_beside_log = false;
std::atomic<bool> line_is_open = false;

/// One write, so that lines of several processes do not mix.
void write_line(std::string_view head, std::string_view text) {
  end_open_line();
  write_log(fmt::format("{}{}\n", head, one_line(text)));
}

}  // namespace

void write_log(std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = ::write(STDERR_FILENO, text.data(), text.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(put));
  }
}

void set_open_line(bool open) {
  line_is_open = open;
}

void end_open_line() {
  if (line_is_open.exchange(false)) write_log("\n");
}

void set_quiet(bool value) {
  quiet = value;
}
bool is_quiet() {
  return quiet;
}

void set_report_beside_log() {
  report_beside_log = true;
}

void print_report(std::string_view text) {
  if (!report_beside_log) return print_to_stdout(text);
  end_open_line();
  write_log(text);
}

void print_to_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  throw IoError(
      fmt::format("the report on stdout cannot be written: {}; see where it goes", std::strerror(errno)));
}

void print_line(std::string_view text) {
  print_report(printable(text) + "\n");
}

void log_note(std::string_view text) {
  if (!quiet) write_line("weightcast: ", text);
}

void log_error(std::string_view text) {
  write_line("weightcast: error: ", text);
}

}  // namespace weightcast
