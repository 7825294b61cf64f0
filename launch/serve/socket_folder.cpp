#include "launch/serve/socket_folder.hpp"

#include <fmt/format.h>
#include <stdlib.h>
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

}  // namespace

SocketFolder::SocketFolder() {
  std::string refusal = "no folder is named";
  for (const char* variable : {"XDG_RUNTIME_DIR", "TMPDIR", ""}) {
    const char* const named = *variable == '\0' ? "/tmp" : std::getenv(variable);
    if (named == nullptr || *named != '/') continue;
    std::string folder = fmt::format("{}/{}XXXXXX", named, kPrefix);
    if (folder.size() + 1 + kName.size() >= sizeof(sockaddr_un::sun_path)) {
      refusal = fmt::format("{} is too long for the name of a socket", named);
    } else if (::mkdtemp(folder.data()) == nullptr) {
      refusal = fmt::format("{}: {}", named, system_error_text(errno));
    } else {
      socket_ = fmt::format("{}/{}", folder, kName);
      return;
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
