#pragma once

#include <string>

namespace weightcast {

/// A fresh folder that no other user may enter, for a socket: `/tmp/weightcast-XXXXXX`. The names
/// of sockets are short. It goes with this.
class SocketFolder {
 public:
  /// Throws IoError.
  SocketFolder();
  ~SocketFolder();
  SocketFolder(const SocketFolder&) = delete;
  SocketFolder& operator=(const SocketFolder&) = delete;

  /// `…/socket`
  const std::string& socket() const { return socket_; }

 private:
  std::string socket_;
};

/// Removes the folder of such a socket and what is in it; nothing when it is this user's no socket of that
/// name.
void remove_socket_folder(const std::string& socket) noexcept;

}  // namespace weightcast
