#include "launch/serve/socket_folder.hpp"

#include <fmt/format.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "core/error.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

constexpr std::string_view kPrefix = "weightcast-";
constexpr std::string_view kName = "socket";

/// Makes a socket of that name and removes it: file systems of a network may have none. The system's error
/// number; 0 where it has been there.
int why_no_socket(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(static_cast<char*>(address.sun_path), sizeof address.sun_path - 1);
  const int made = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool bound =
      made >= 0 && ::bind(made, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  const int error = bound ? 0 : errno;
  if (made >= 0) ::close(made);
  if (bound) ::unlink(path.c_str());
  return error;
}

}  // namespace

SocketFolder::SocketFolder() {
  std::string refusal = "no folder is named";
  // The last one goes when its user logs out, though a server may stay.
  for (const char* variable : {"TMPDIR", "", "XDG_RUNTIME_DIR"}) {
    const char* const named = *variable == '\0' ? "/tmp" : std::getenv(variable);
    if (named == nullptr || *named != '/') continue;
    std::string folder = fmt::format("{}/{}XXXXXX", named, kPrefix);
    if (folder.size() + 1 + kName.size() >= sizeof(sockaddr_un::sun_path)) {
      refusal = fmt::format("{} is too long for the name of a socket", named);
    } else if (::mkdtemp(folder.data()) == nullptr) {
      refusal = fmt::format("{}: {}", named, system_error_text(errno));
    } else {
      socket_ = fmt::format("{}/{}", folder, kName);
      const int error = why_no_socket(socket_);
      if (error == 0) return;
      ::rmdir(folder.c_str());
      refusal = fmt::format("{}: {}", named, system_error_text(error));
    }
  }
  throw IoError(fmt::format("no folder can be made for the socket: {}; name one in TMPDIR", refusal));
}

SocketFolder::~SocketFolder() {
  remove_socket_folder(socket_);
}

void remove_socket_folder(const std::string& socket) noexcept {
  try {
    const std::filesystem::path path(socket);
    const std::filesystem::path folder = path.parent_path();
    if (path.filename() != kName || !folder.filename().string().starts_with(kPrefix)) return;
    struct stat status = {};
    if (::lstat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != ::getuid())
      return;
    if (::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) ::unlink(path.c_str());
    ::rmdir(folder.c_str());
  } catch (const std::exception&) {
    // No memory for a path: the folder stays.
  }
}

}  // namespace weightcast
