#pragma once

#include "cli/cli.hpp"

namespace weightcast::test_support {

/// `mpirun -n RANKS weightcast WORDS…` with the tampering library of the test preloaded and told what to do
/// by `variables`.
inline Outcome run_tampered_job(int ranks, const Words& words, const Variables& variables) {
  Words job{"-x", std::string("LD_PRELOAD=") + WEIGHTCAST_TAMPERING_LIBRARY};
  for (const auto& [name, value] : variables) {
    job.emplace_back("-x");
    job.emplace_back(name).append("=").append(value);
  }
#ifdef __SANITIZE_ADDRESS__
  // The preloaded library comes before the sanitizer's own.
  job = job + Words{"-x", "ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0"};
#endif
  return run(mpirun(ranks, job + Words{WEIGHTCAST_BINARY} + words));
}

}  // namespace weightcast::test_support
