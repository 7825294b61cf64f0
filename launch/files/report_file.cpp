#include "launch/files/report_file.hpp"

#include <exception>
#include <nlohmann/json.hpp>

#include "launch/version.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"

namespace weightcast {

std::optional<OutputFile> begin_report(const Options& options) {
  return begin_output("json", options.json, brief_report(options, "running", ""));
}

void write_failure(std::optional<OutputFile>& json, const EndReport& report, ExitCode code,
                   const std::string& line) {
  if (!json || json->written()) return;
  try {
    json->write(report(code, line));
  } catch (const std::exception& unwritable) {
    const Error refusal = error_of(unwritable);
    if (refusal.what() != line) log_note(refusal.what());
  }
}

std::string status_name(ExitCode code) {
  switch (code) {
    case ExitCode::kDone:
      return "done";
    case ExitCode::kUsage:
      return "usage";
    case ExitCode::kBadInput:
      return "bad input";
    case ExitCode::kVerificationFailed:
      return "verification failed";
    case ExitCode::kInternal:
      return "internal";
    case ExitCode::kInputOutput:
      return "input/output";
    case ExitCode::kStopped:
      return "stopped";
    case ExitCode::kTimeout:
      return "timeout";
  }
  return "internal";
}

std::string brief_report(const Options& options, const std::string& status, const std::string& line) {
  return json_report(
      {{"weightcast", version_line()},
       {"command", options.command},
       {"status", status},
       {"error", line.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(line)}});
}

}  // namespace weightcast
