#pragma once

#include <functional>
#include <string>

#include "control/control.hpp"
#include "launch/files/output_file.hpp"
#include "launch/model.hpp"
#include "launch/options.hpp"
#include "report/update_report.hpp"
#include "session/session.hpp"

namespace weightcast {

/// The parts of the report that a session knows once it is open. Collective (gathers the rank map to rank 0).
JobReport describe_job(Control& control, const Options& options, const Model& model, const Session& session,
                       const Placement& placement, double startup_seconds);

/// Runs the body of a job and then puts `report` into the file of `--json`: what it says of the end, given
/// the code and the error line, empty when all went well. The body is given the file of `--trace`, on rank 0,
/// when there is one. A failure that not all ranks have agreed on ends the job here, before anything that MPI
/// still uses is gone. Collective.
void run_job(Control& control, const Options& options, const std::function<void(OutputFile* trace)>& body,
             const std::function<std::string(ExitCode, const std::string&)>& report);

/// Runs `report`, which says something of what is done. The error of what cannot be said says what is in
/// place all the same.
void report_in_place(const Control& control, const std::function<void()>& report);

/// `done`, `bad input`, …: the word for an exit code in JSON.
std::string status_name(ExitCode code);

/// A report that says how a command ended, or that it runs, and nothing else.
std::string brief_report(const std::string& command, const std::string& status, const std::string& error);

}  // namespace weightcast
