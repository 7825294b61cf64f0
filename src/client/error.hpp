#pragma once

#include "client/weightcast/client.h"

namespace weightcast::client {

/// Notes the thread's last error, of up to a kilobyte, and returns `code`.
int fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

/// The same with the system's word for errno behind it.
int fail_with_errno(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace weightcast::client
