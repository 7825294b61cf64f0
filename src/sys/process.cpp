#include "sys/process.hpp"

#include <fmt/format.h>
#include <sys/types.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <string>

namespace weightcast {

bool is_running(std::int64_t process) {
  if (::kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH) return false;
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text;
  std::getline(file, text);
  // `123 (a name) Z …`; a name may have parentheses.
  const std::size_t name = text.rfind(')');
  return name == std::string::npos || name + 2 >= text.size() ||
         (text[name + 2] != 'Z' && text[name + 2] != 'X');
}

}  // namespace weightcast
