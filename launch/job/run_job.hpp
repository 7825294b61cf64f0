#pragma once

#include <functional>
#include <string>

#include "control/control.hpp"
#include "launch/files/report_file.hpp"
#include "launch/options.hpp"

namespace weightcast {

/// Runs the body of a job and then puts what `report` says of the end into the file of `--json`. The body is
/// given the file of `--trace`, on rank 0, when there is one. A failure that not all ranks have agreed on
/// ends the job here, before anything that MPI still uses is gone; `on_failure`, on rank 0, hears of it
/// first, as of any other. Collective.
void run_job(Control& control, const Options& options, const std::function<void(OutputFile* trace)>& body,
             const EndReport& report,
             const std::function<void(ExitCode code, const std::string& line)>& on_failure = {});

/// Throws StoppedError when a signal has asked to stop after what is in progress: `stopped by SIGUSR1
/// <when>`.
void require_no_soft_stop(const std::string& when);

/// Runs `report`, which says something of what is done. The error of what cannot be said says what is in
/// place all the same.
void report_in_place(const Control& control, const std::function<void()>& report);

}  // namespace weightcast
