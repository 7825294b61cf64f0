#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/commands.hpp"
#include "launch/job/live_ends.hpp"
#include "launch/serve/ask.hpp"
#include "launch/serve/server_file.hpp"
#include "report/log.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

/// The server of a folder, on this host and of this user. Throws IoError.
ServerAddress find_server(const std::string& directory) {
  const std::string path = server_file_path(directory);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    throw IoError(fmt::format(
        "{}: no server; start one with mpirun -n N weightcast serve --source live:{} --sink live:{} "
        "--model CONFIG_JSON --inference LAYOUT",
        path, directory, directory));
  }
  ServerAddress server = read_server_file(directory);
  if (server.host != this_host()) {
    const std::string job = server.job.empty() ? "" : fmt::format(" --jobid={}", server.job);
    const std::string whole = std::filesystem::absolute(directory, error).string();
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
  const ServerAddress server = find_server(directory);
  UpdateRequest request;
  if (options.has_weight_version) request.version = options.weight_version;
  request.queue = !options.no_queue;
  UpdateAnswer answer;
  try {
    answer = ask_server(server.socket, request, std::chrono::seconds(options.timeout),
                        [] { require_no_signal("an update that has begun goes on"); });
  } catch (const IoError& error) {
    throw IoError(fmt::format("{} (process {}): {}; is the server gone? then start it again",
                              server_file_path(directory), server.pid, error.what()));
  }
  std::istringstream lines(answer.report);
  for (std::string line; std::getline(lines, line);) print_line(line);
  if (!answer.note.empty()) log_note(answer.note);
  if (answer.code != ExitCode::kDone) throw Error(answer.code, answer.error);
}

}  // namespace weightcast
