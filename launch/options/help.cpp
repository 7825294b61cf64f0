#include "launch/options/help.hpp"

#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <sstream>
#include <string>

#include "launch/commands.hpp"
#include "launch/options/table.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

std::string command_list() {
  std::string text;
  for (const Command& command : commands()) {
    text += fmt::format("  {:<8} {}\n", command.name, command.summary);
  }
  return text;
}

}  // namespace

void print_help(std::string_view command) {
  if (command.empty()) {
    print_report(fmt::format(
        "weightcast moves freshly trained weights from trainer ranks into the memory of inference ranks.\n\n"
        "usage: weightcast COMMAND [options]\n\n{}\nweightcast COMMAND --help lists a command's options, "
        "`source <(weightcast completion bash)` completes them.\n"
        "They also come "
        "from variables (WEIGHTCAST_BUCKET_SIZE)\nand from --config FILE (bucket-size = 64MiB): command line "
        "over "
        "environment over file. An error is one line\nand an exit code: 64 command line, 65 a file's "
        "content, 66 "
        "wrong weights, 70 internal, 74 the system,\n75 stopped by a signal, 76 timeout.\n",
        command_list()));
    return;
  }
  std::ostringstream options;
  options << describe(bit_of(command));
  for (const Command& info : commands()) {
    if (info.name == command) {
      print_report(
          fmt::format("usage: {}\n\n{}: {}\n\n{}", info.usage, info.name, info.summary, options.str()));
    }
  }
}

}  // namespace weightcast
