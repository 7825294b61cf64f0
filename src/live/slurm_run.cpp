#include "live/slurm_run.hpp"

#include <fmt/format.h>

#include <cstdlib>

#include "core/error.hpp"

namespace weightcast {

namespace {

std::string run_text(const std::string& job, const std::string& restart) {
  return "Slurm job " + job + (restart.empty() || restart == "0" ? "" : ", restart " + restart);
}

}  // namespace

std::string other_run(const Manifest& manifest) {
  const char* const job = std::getenv("SLURM_JOB_ID");
  if (job == nullptr || manifest.job.empty()) return "";
  const char* const restart = std::getenv("SLURM_RESTART_COUNT");
  const std::string theirs = run_text(manifest.job, manifest.restart);
  const std::string own = run_text(job, restart == nullptr ? "" : restart);
  return theirs == own ? "" : fmt::format("of {}, not of this one ({})", theirs, own);
}

void require_this_start(const Manifest& manifest) {
  const std::string run = other_run(manifest);
  if (run.empty() || manifest.job != std::getenv("SLURM_JOB_ID")) return;
  throw IoError(fmt::format(
      "{}: is {}; its process has ended with that start: wait until all have published anew, or give every "
      "start a folder of its own",
      manifest.path, run));
}

}  // namespace weightcast
