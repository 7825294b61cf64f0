#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/process.hpp"
#include "launch/serve/ask.hpp"
#include "launch/serve/server_file.hpp"
#include "report/log.hpp"
#include "report/update_report.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

constexpr const char* kUpdateGoesOn = "an update that has begun goes on";

/// What is at a path, be it nothing. Throws IoError where this user may not know.
std::filesystem::file_status status_of(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() != std::filesystem::file_type::none) return status;
  throw IoError(fmt::format("{}: {}; ask as the user who has started the server", path, error.message()));
}

/// The server of a folder, on this host and of this user. Throws IoError.
ServerAddress find_server(const std::string& directory) {
  if (const auto folder = status_of(directory); !std::filesystem::is_directory(folder)) {
    throw IoError(fmt::format("{}: {}; name the folder where trainers and engines publish", directory,
                              std::filesystem::exists(folder) ? "is no folder" : "there is no such folder"));
  }
  const std::string path = server_file_path(directory);
  if (!std::filesystem::exists(status_of(path))) {
    throw IoError(fmt::format(
        "{}: no server; start one with mpirun -n N weightcast serve --source live:{} --sink live:{} "
        "--model CONFIG_JSON --inference LAYOUT",
        path, directory, directory));
  }
  ServerAddress server = read_server_file(directory);
  if (server.host != this_host()) {
    const std::string job = server.job.empty() ? "" : fmt::format(" --jobid={}", server.job);
    std::error_code ignored;
    const std::string whole = std::filesystem::absolute(directory, ignored).string();
    throw IoError(
        fmt::format("{}: the server is on host {}; ask there: srun{} --overlap -w {} weightcast trigger {}",
                    path, server.host, job, server.host, whole));
  }
  if (server.uid != static_cast<std::int64_t>(::getuid())) {
    throw IoError(fmt::format("{}: the server is of user {}; ask as that user", path, server.uid));
  }
  if (server.boot_id != this_boot()) {
    throw IoError(path + ": the host has been started anew since; start the server again");
  }
  return server;
}

}  // namespace

void run_trigger(const Options& options, OutputFile* /*json*/) {
  if (options.arguments.size() != 1) throw UsageError("trigger takes one DIR: weightcast trigger DIR");
  const std::string& named = options.arguments.front();
  const std::string directory = live_directory(named).value_or(named);
  set_left_when_stopped(kUpdateGoesOn);
  const ServerAddress server = find_server(directory);
  UpdateRequest request;
  if (options.has_weight_version) request.version = options.weight_version;
  request.queue = !options.no_queue;
  const std::string asked = fmt::format("{} (process {})", server_file_path(directory), server.pid);
  UpdateAnswer answer;
  try {
    answer = ask_server(server.socket, request, std::chrono::seconds(options.timeout),
                        [] { require_no_signal(kUpdateGoesOn); });
  } catch (const IoError& error) {
    throw IoError(fmt::format("{}: {}; start the server again", asked, error.what()));
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", asked, error.what()));
  }
  if (!answer.report.empty()) print_report(update_columns());
  std::istringstream lines(answer.report);
  for (std::string line; std::getline(lines, line);) print_line(line);
  if (!answer.note.empty()) log_note(answer.note);
  if (answer.code != ExitCode::kDone) throw Error(answer.code, answer.error);
}

}  // namespace weightcast
