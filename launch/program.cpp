#include "launch/program.hpp"

#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/files/report_file.hpp"
#include "launch/job/launcher.hpp"
#include "launch/options.hpp"
#include "launch/process.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

int fail(const Error& error, bool speaks) {
  end_by_oneself();
  if (speaks) log_error(error.what());
  return static_cast<int>(error.code());
}

/// A command line that is wrong on some or all ranks: one line, and the same exit code from all, which
/// launchers only pass on from ranks that have started and ended MPI.
int fail_as_rank(const Error& error) {
  using namespace std::chrono_literals;
  return run_as_rank([&](Control& control) { control.agreement.together([&] { throw error; }); }, 60s);
}

int run_command(const Command& command, const Options& options) {
  if (command.job != nullptr && !options.dry_run) {
    return run_as_rank([&](Control& control) { command.job(control, options); },
                       std::chrono::seconds(options.timeout));
  }
  std::optional<OutputFile> json = begin_report(options);
  try {
    const auto plain = options.dry_run ? &run_dry_sync : command.plain;
    plain(options, json ? &*json : nullptr);
  } catch (const std::exception& exception) {
    const Error error = error_of(exception);
    const auto report = [&](ExitCode code, const std::string& line) {
      return brief_report(options, status_name(code), line);
    };
    write_failure(json, report, error.code(), error.what());
    throw;
  }
  return static_cast<int>(ExitCode::kDone);
}

}  // namespace

int run_program(int argc, const char* const* argv) {
  const Command* const command = find_command(argc > 1 ? argv[1] : "");
  if (command != nullptr && command->other != nullptr) return command->other(argc, argv);
  const bool launched = command != nullptr && command->job != nullptr;
  // Of the processes of a job one speaks; every plain command speaks for itself.
  const bool speaks = (command != nullptr && !launched) || speaks_for_all();
  std::optional<Options> options;
  std::vector<std::string> notes;
  try {
    prepare_process();
    watch_signals();
    // Of a job's ranks the control decides.
    if (!launched) set_left_when_stopped("nothing was changed");
    try {
      options = parse_options(argc, argv, speaks, notes);
    } catch (const Error& error) {
      return launched && has_mpi_launcher() ? fail_as_rank(error) : fail(error, speaks);
    }
    if (!options) return static_cast<int>(ExitCode::kDone);
    set_quiet(options->quiet);
    if (options->json == "-" || options->trace == "-" || options->picture == "-") set_report_beside_log();
    if (speaks) {
      for (const std::string& note : notes) log_note(note);
    }
    // Of a dry run one process says all, and the others of a launcher nothing.
    if (options->dry_run && !speaks) return static_cast<int>(ExitCode::kDone);
    return run_command(*command, *options);
  } catch (const std::exception& exception) {
    const Error error = error_of(exception);
    // What the system refuses one rank before there is MPI the others do not know.
    const bool alone = launched && error.code() == ExitCode::kInputOutput && !speaks && !others_have_ended();
    return fail(error, speaks || alone);
  }
}

}  // namespace weightcast
