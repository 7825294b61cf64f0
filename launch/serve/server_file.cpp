#include "launch/serve/server_file.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/json_text.hpp"
#include "launch/serve/ask.hpp"
#include "launch/serve/socket_folder.hpp"
#include "report/json_report.hpp"
#include "storage/durable_file.hpp"
#include "storage/input_file.hpp"
#include "sys/host.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kServerFileFormat = 1;

constexpr std::int64_t kMostBytes = 65536;

}  // namespace

std::string server_file_path(const std::string& directory) {
  return (fs::path(directory) / "server.json").string();
}

ServerAddress own_address(const std::string& socket) {
  const char* const job = std::getenv("SLURM_JOB_ID");
  return {this_host(), this_boot(), ::getpid(), ::getuid(), job == nullptr ? "" : job, socket};
}

ServerAddress read_server_file(const std::string& directory) {
  const std::string path = server_file_path(directory);
  const json object = parse_json(read_text_file(path, kMostBytes), path,
                                 {.bytes = static_cast<std::size_t>(kMostBytes), .unique_names = true});
  const auto refuse = [&](const char* name, const char* what) {
    throw InputError(fmt::format("{}: '{}' {}; start the server again with this version of the program", path,
                                 name, what));
  };
  const auto text = [&](const char* name) {
    const auto found = object.find(name);
    if (found == object.end() || !found->is_string()) refuse(name, "is no text");
    return found->get<std::string>();
  };
  const auto number = [&](const char* name) {
    const auto found = object.find(name);
    const bool whole =
        found != object.end() && found->is_number_unsigned() && found->get<std::uint64_t>() <= INT64_MAX;
    if (!whole) refuse(name, "is no whole number");
    return found->get<std::int64_t>();
  };
  if (number("weightcast") != kServerFileFormat) refuse("weightcast", "is not 1");
  return {text("host"), text("boot_id"), number("pid"), number("uid"), text("job"), text("socket")};
}

void remove_dead_server(const std::string& directory) {
  try {
    const ServerAddress dead = read_server_file(directory);
    if (dead.host == this_host() && dead.boot_id == this_boot()) {
      // A copy of the folder names a server that lives.
      if (is_listened_to(dead.socket)) return;
      remove_socket_folder(dead.socket);
    }
  } catch (const Error&) {
    // There is none, or nobody can tell what it meant.
  }
  std::error_code ignored;
  fs::remove(server_file_path(directory), ignored);
}

ServerFile::ServerFile(const std::string& directory, const ServerAddress& address)
    : path_(server_file_path(directory)),
      text_(json_report({{"weightcast", kServerFileFormat},
                         {"host", address.host},
                         {"boot_id", address.boot_id},
                         {"pid", address.pid},
                         {"uid", address.uid},
                         {"job", address.job},
                         {"socket", address.socket}})) {
  const std::string beside = path_ + ".new";
  std::error_code error;
  fs::remove(beside, error);
  write_durably(beside, text_);
  fs::permissions(beside, fs::perms::owner_read | fs::perms::owner_write, error);
  if (!error) fs::rename(beside, path_, error);
  if (!error) return;
  std::error_code ignored;
  fs::remove(beside, ignored);
  throw IoError(fmt::format("cannot write {}: {}; check its folder", path_, error.message()));
}

ServerFile::~ServerFile() {
  std::error_code ignored;
  if (is_there()) fs::remove(path_, ignored);
}

bool ServerFile::is_there() const {
  std::error_code error;
  if (fs::status(path_, error).type() == fs::file_type::not_found) return false;
  try {
    return read_text_file(path_, kMostBytes) == text_;
  } catch (const IoError&) {
    return true;  // a server of files that does not answer just now
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace weightcast
