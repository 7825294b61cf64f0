#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "sys/cuda.hpp"

namespace weightcast::gpu_test {

/// True when tests that find no GPU must fail: on machines that are there for them.
inline bool gpu_is_required() {
  const char* value = std::getenv("WEIGHTCAST_REQUIRE_GPU");
  return value != nullptr && std::string_view(value) == "1";
}

}  // namespace weightcast::gpu_test

/// Skips the test, loudly, on a machine with fewer than `count` GPUs; fails it with WEIGHTCAST_REQUIRE_GPU=1.
#define WEIGHTCAST_NEEDS_GPUS(count)                                                                     \
  do {                                                                                                   \
    const int visible = ::weightcast::visible_devices();                                                 \
    if (visible >= (count)) break;                                                                       \
    if (::weightcast::gpu_test::gpu_is_required()) {                                                     \
      FAIL() << "needs " << (count) << " GPUs, sees " << visible << ", and WEIGHTCAST_REQUIRE_GPU is 1"; \
    }                                                                                                    \
    GTEST_SKIP() << "needs " << (count) << " GPUs, sees " << visible;                                    \
  } while (false)
