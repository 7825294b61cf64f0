// Jobs on a disk that slow_disk.cpp makes slow.

#pragma once

#include <chrono>
#include <string>

#include "cli/cli.hpp"

namespace weightcast::test_support {

/// What a disk has to be slower by so that a job of 400 updates cannot be done before a signal reaches it.
inline constexpr std::chrono::milliseconds kSlowUpdate{20};

/// `mpirun -n RANKS weightcast WORDS…` on a disk that takes `delay` longer to read or flush a file whose path
/// contains `file`.
inline CommandLine slow_disk_job(int ranks, const Words& words, const std::string& file,
                                 std::chrono::milliseconds delay) {
  return job_command(ranks, words,
                     {{"LD_PRELOAD", WEIGHTCAST_SLOW_DISK},
                      {"SLOW_DISK_FILE", file},
                      {"SLOW_DISK_MILLISECONDS", std::to_string(delay.count())}});
}

}  // namespace weightcast::test_support
