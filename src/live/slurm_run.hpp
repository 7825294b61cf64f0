#pragma once

#include <string>

#include "live/manifest.hpp"

namespace weightcast {

/// `of Slurm job 77, not of this one (Slurm job 78)` when an exporter is of another run than this process;
/// empty where either is of none.
std::string other_run(const Manifest& manifest);

/// Throws IoError when an exporter is of another start of this process's job: Slurm ended it before it
/// started the job anew. Another job may run beside this one.
void require_this_start(const Manifest& manifest);

}  // namespace weightcast
