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

/// Removes the file and the socket that a dead server has left, so that whoever waits for the next one's does
/// not take them for it. Only for who keeps others from being the folder's server.
void remove_dead_server(const std::string& directory);

/// The file of a server that runs, for as long as this lives. Only one server of a folder may have one at a
/// time.
class ServerFile {
 public:
  /// Throws IoError.
  ServerFile(const std::string& directory, const ServerAddress& address);
  /// Removes it, unless another server's has taken its place.
  ~ServerFile();
  ServerFile(const ServerFile&) = delete;
  ServerFile& operator=(const ServerFile&) = delete;

  const std::string& path() const { return path_; }
  /// False when the file is gone or another one has taken its place, so that nobody finds this server.
  bool is_there() const;

 private:
  std::string path_;
  std::string text_;  ///< names a socket that no other server has
};

}  // namespace weightcast
