#pragma once

#include <cstdint>
#include <string>

namespace weightcast {

/// Where a server is reached: what `server.json` says.
struct ServerAddress {
  std::string host;
  std::string boot_id;
  std::int64_t pid = 0;
  std::int64_t uid = 0;
  std::string job;  ///< of Slurm; empty outside of one
  std::string socket;
};

/// `DIR/server.json`
std::string server_file_path(const std::string& directory);

/// This process, with that socket.
ServerAddress own_address(const std::string& socket);

/// Reads the file. Nothing in it is trusted. Throws InputError naming the file and the field that is wrong,
/// IoError when there is none.
ServerAddress read_server_file(const std::string& directory);

/// The file of a server that runs, for as long as this lives. Only one server of a folder may have one at a
/// time.
class ServerFile {
 public:
  /// Puts it in place of one that a dead server has left, whose socket goes, too. Throws IoError.
  ServerFile(std::string directory, const ServerAddress& address);
  ~ServerFile();
  ServerFile(const ServerFile&) = delete;
  ServerFile& operator=(const ServerFile&) = delete;

 private:
  std::string directory_;
};

}  // namespace weightcast
