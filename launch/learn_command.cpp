#include "launch/learn_command.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "launch/process.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

// Without the package Python would say so in words of its own, and end with 1.
constexpr const char* kProgram = R"(
import runpy, sys
try:
    import weightcast
except ImportError as error:
    print(f"weightcast: error: learn needs the package weightcast for {sys.executable} ({error}); pip install launch/python there, "
          "or name another Python with WEIGHTCAST_PYTHON", file=sys.stderr)
    sys.exit(74)
runpy.run_module("weightcast.learn", run_name="__main__", alter_sys=True)
)";

}  // namespace

int run_learn(int argc, const char* const* argv) {
  const char* const named = std::getenv("WEIGHTCAST_PYTHON");
  const std::string python = named != nullptr && *named != '\0' ? named : "python3";
  std::vector<const char*> words{python.c_str(), "-c", kProgram};
  words.insert(words.end(), argv + 2, argv + argc);
  words.push_back(nullptr);
  ::execvp(words.front(), const_cast<char* const*>(words.data()));
  log_error(
      fmt::format("{} cannot be started: {}; name a Python that has vLLM and the package weightcast with "
                  "WEIGHTCAST_PYTHON",
                  excerpt(python), std::strerror(errno)));
  return static_cast<int>(ExitCode::kInputOutput);
}

}  // namespace weightcast
