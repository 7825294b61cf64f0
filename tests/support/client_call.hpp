#pragma once

#include <fmt/format.h>

#include "core/error.hpp"
#include "weightcast/client.h"

namespace weightcast::test_support {

/// Throws IoError with the client's words when `code`, which a call of the client returned, is not 0.
inline void check(int code) {
  if (code != WEIGHTCAST_OK) throw IoError(fmt::format("client: {} ({})", weightcast_last_error(), code));
}

}  // namespace weightcast::test_support
