#pragma once

#include <functional>
#include <string>

#include "launch/model.hpp"
#include "launch/options.hpp"
#include "report/update_report.hpp"
#include "session/control.hpp"
#include "session/session.hpp"

namespace weightcast {

/// The parts of the report that a session knows once it is open. Collective (gathers the rank map to rank 0).
JobReport describe_job(Control& control, const Options& options, const Model& model, const Session& session,
                       const Placement& placement, double startup_seconds);

/// Runs the body of a job and then `write`, on rank 0, with its end: the code and the error line, empty when
/// all went well. A failure that not all ranks have agreed on ends the job here, before anything that MPI
/// still uses is gone. Collective.
void run_job(Control& control, const Options& options, const std::function<void()>& body,
             const std::function<void(ExitCode, const std::string&)>& write);

/// `done`, `bad input`, …: the word for an exit code in JSON.
std::string status_name(ExitCode code);

/// Empties the file of option `--option`, if it was given: what an earlier run left there must not pass for
/// this run's. Pipes and devices are left alone. Throws IoError naming both when it cannot be written, so
/// that nothing is done for no report, and UsageError when the file there can have been no report.
void begin_output(const std::string& option, const std::string& path);

/// Writes text to a file; throws IoError naming it.
void write_text(const std::string& path, const std::string& text);

}  // namespace weightcast
