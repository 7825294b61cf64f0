#include "sys/host.hpp"

#include <unistd.h>

#include <array>

namespace weightcast {

std::string this_host() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown host";
}

}  // namespace weightcast
