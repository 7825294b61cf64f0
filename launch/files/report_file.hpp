#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/error.hpp"
#include "launch/files/output_file.hpp"
#include "launch/options.hpp"

namespace weightcast {

/// What a command's report says, given how the command ended and its error line, empty when all went well.
using EndReport = std::function<std::string(ExitCode code, const std::string& line)>;

/// The file of `--json`, if it is asked for, which says from now on that the command runs. Throws as
/// OutputFile.
std::optional<OutputFile> begin_report(const Options& options);

/// Puts what `report` says of a failure into the file, unless there is none or it has its report already. One
/// that cannot be written must not hide the failure: that goes into the log, where it is not the failure
/// itself.
void write_failure(std::optional<OutputFile>& json, const EndReport& report, ExitCode code,
                   const std::string& line);

/// `done`, `bad input`, …: the word for an exit code in JSON.
std::string status_name(ExitCode code);

/// A report that says how a command ended, or that it runs, and nothing else.
std::string brief_report(const Options& options, const std::string& status, const std::string& line);

}  // namespace weightcast
