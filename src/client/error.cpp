#include "client/error.hpp"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace weightcast::client {

namespace {

constexpr std::size_t kLongest = 1024;
thread_local char last_error[kLongest] = "";

/// Names come from elsewhere, and may hold what a terminal would follow.
void make_one_line() {
  for (char& character : last_error) {
    if (character == '\0') return;
    const auto byte = static_cast<unsigned char>(character);
    if (byte < 0x20 || byte == 0x7f) character = ' ';
  }
}

}  // namespace

int fail(int code, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, kLongest, format, arguments);
  va_end(arguments);
  make_one_line();
  return code;
}

int fail_with_errno(const char* format, ...) {
  const int number = errno;
  std::va_list arguments;
  va_start(arguments, format);
  const int length = std::vsnprintf(last_error, kLongest, format, arguments);
  va_end(arguments);
  if (length >= 0 && static_cast<std::size_t>(length) < kLongest) {
    std::snprintf(last_error + length, kLongest - static_cast<std::size_t>(length), ": %s",
                  std::strerror(number));
  }
  make_one_line();
  return WEIGHTCAST_REFUSED;
}

}  // namespace weightcast::client

extern "C" const char* weightcast_last_error(void) {
  return weightcast::client::last_error;
}
