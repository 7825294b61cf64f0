#include "client/arguments.hpp"

#include <cinttypes>

#include "client/error.hpp"

namespace weightcast::client {

namespace {

/// The bytes of the UTF-8 character that a text begins with; 0 when it begins with none. JSON takes no other
/// text: no surrogates, nothing in more bytes than it needs, nothing above U+10FFFF.
int length_of_character(const unsigned char* text) {
  const unsigned char first = text[0];
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  const int length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  unsigned char least = 0x80;
  unsigned char most = 0xbf;
  if (first == 0xe0) least = 0xa0;
  if (first == 0xed) most = 0x9f;
  if (first == 0xf0) least = 0x90;
  if (first == 0xf4) most = 0x8f;
  // The zero at the end of a text that is cut ends the look.
  if (text[1] < least || text[1] > most) return 0;
  for (int i = 2; i < length; ++i) {
    if (text[i] < 0x80 || text[i] > 0xbf) return 0;
  }
  return length;
}

}  // namespace

int require_given(const void* place, const char* what) {
  return place != nullptr ? WEIGHTCAST_OK : fail(WEIGHTCAST_BAD_ARGUMENT, "%s is NULL; give it", what);
}

int require_text(const char* text, const char* what) {
  if (text == nullptr) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s is NULL; give a text", what);
  const auto* at = reinterpret_cast<const unsigned char*>(text);
  while (*at != '\0') {
    const int length = length_of_character(at);
    if (length == 0) return fail(WEIGHTCAST_BAD_ARGUMENT, "%s '%s' is no UTF-8; encode it so", what, text);
    at += length;
  }
  return WEIGHTCAST_OK;
}

int require_name(const char* name, const char* what) {
  if (const int code = require_text(name, what); code != WEIGHTCAST_OK) return code;
  return *name != '\0' ? WEIGHTCAST_OK : fail(WEIGHTCAST_BAD_ARGUMENT, "%s is empty; give one", what);
}

int require_seconds(double seconds) {
  constexpr double kMost = 1e9;
  if (seconds >= 0 && seconds <= kMost) return WEIGHTCAST_OK;
  return fail(WEIGHTCAST_BAD_ARGUMENT, "a wait of %g s; give a number from 0 to %g", seconds, kMost);
}

int require_version(std::int64_t version) {
  if (version >= 0) return WEIGHTCAST_OK;
  return fail(WEIGHTCAST_BAD_ARGUMENT, "version %" PRId64 "; versions count from 0", version);
}

}  // namespace weightcast::client
