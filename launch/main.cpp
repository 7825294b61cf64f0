#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/job.hpp"
#include "launch/launcher.hpp"
#include "launch/options.hpp"
#include "launch/process.hpp"
#include "launch/version.hpp"
#include "report/json_report.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

int fail(const Error& error, bool speaks) {
  if (speaks) log_error(error.what());
  return static_cast<int>(error.code());
}

/// A command line that is wrong on some or all ranks: one line, and the same exit code from all, which
/// launchers only pass on from ranks that have started and ended MPI.
int fail_as_rank(const Error& error) {
  using namespace std::chrono_literals;
  return run_as_rank([&](Control& control) { control.together([&] { throw error; }); }, 60s);
}

/// The report of a plain command that failed. One that cannot be written must not hide the error.
void write_failure(const Options& options, const Error& error) {
  if (options.json.empty()) return;
  const nlohmann::ordered_json json = {{"weightcast", version_line()},
                                       {"command", options.command},
                                       {"status", status_name(error.code())},
                                       {"error", error.what()}};
  try {
    write_text(options.json, json_report(json));
  } catch (const std::exception& unwritable) {
    log_note(error_of(unwritable).what());
  }
}

int run_command(const Options& options, bool launched) {
  const std::string& command = options.command;
  if (launched) {
    const auto job = command == "sync" ? &run_sync : &run_bench;
    return run_as_rank([&](Control& control) { job(control, options); },
                       std::chrono::seconds(options.timeout));
  }
  const auto plain = command == "plan"      ? &run_plan
                     : command == "inspect" ? &run_inspect
                     : command == "verify"  ? &run_verify
                     : command == "synth"   ? &run_synth
                                            : &run_convert;
  begin_output("json", options.json);
  try {
    plain(options);
  } catch (const std::exception& exception) {
    write_failure(options, error_of(exception));
    throw;
  }
  return static_cast<int>(ExitCode::kDone);
}

int run(int argc, const char* const* argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  const bool launched = is_launched(command);
  // Of the processes of a job one speaks; every plain command speaks for itself.
  const bool speaks = is_plain(command) || speaks_for_all();
  std::optional<Options> options;
  std::vector<std::string> notes;
  try {
    prepare_process();
    try {
      options = parse_options(argc, argv, speaks, notes);
    } catch (const Error& error) {
      return launched && has_mpi_launcher() ? fail_as_rank(error) : fail(error, speaks);
    }
    if (!options) return static_cast<int>(ExitCode::kDone);
    set_quiet(options->quiet);
    if (speaks) {
      for (const std::string& note : notes) log_note(note);
    }
    return run_command(*options, launched);
  } catch (const std::exception& exception) {
    const Error error = error_of(exception);
    // What the system refuses one rank before there is MPI the others do not know.
    const bool alone = launched && error.code() == ExitCode::kInputOutput && !speaks && !others_have_ended();
    return fail(error, speaks || alone);
  }
}

}  // namespace

}  // namespace weightcast

int main(int argc, char** argv) {
  return weightcast::run(argc, argv);
}
