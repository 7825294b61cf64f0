#include "launch/options/help.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "launch/commands.hpp"
#include "launch/options/table.hpp"
#include "report/lines.hpp"
#include "report/log.hpp"

namespace weightcast {

namespace {

/// `name` and its description beside it, from column `indent` on; below it where the name is too long.
std::string entry(const std::string& name, std::string_view description, std::size_t indent,
                  std::size_t width) {
  const std::string blanks(indent, ' ');
  std::string text = "  " + name;
  const bool beside = text.size() + 1 < indent;
  text += beside ? blanks.substr(text.size()) : "\n" + blanks;
  text += description;
  return wrapped(text, width, blanks) + "\n";
}

std::string command_list(std::size_t width) {
  std::string text;
  for (const Command& command : commands()) {
    text += entry(std::string(command.name), command.summary, 11, width);
  }
  return text;
}

/// `-q, --quiet`, `--json FILE`
std::string name_of(const OptionInfo& option) {
  const std::string_view name = option.name;
  const std::size_t comma = name.find(',');
  const std::string letter =
      comma == std::string_view::npos ? "" : fmt::format("-{}, ", name.substr(comma + 1));
  return fmt::format("{}--{}{}{}", letter, long_name(option), option.argument == nullptr ? "" : " ",
                     option.argument == nullptr ? "" : option.argument);
}

std::string option_list(unsigned command, std::size_t width) {
  constexpr std::size_t kIndent = 26;
  constexpr std::size_t kNarrow = 60;
  constexpr std::size_t kNarrowIndent = 6;
  std::string text = "options:\n";
  for (const OptionInfo& option : option_table()) {
    if ((option.commands & command) == 0) continue;
    text += entry(name_of(option), option.help, width < kNarrow ? kNarrowIndent : kIndent, width);
  }
  return text;
}

}  // namespace

void print_help(std::string_view command) {
  const std::size_t width = line_width(STDOUT_FILENO);
  if (const Command* const info = find_command(command)) {
    const std::string usage = wrapped(fmt::format("usage: {}", info->usage), width, "       ");
    const std::string summary = wrapped(fmt::format("{}: {}", info->name, info->summary), width);
    print_report(fmt::format("{}\n\n{}\n\n{}", usage, summary, option_list(bit_of(command), width)));
    return;
  }
  const std::string end = wrapped(
      "weightcast COMMAND --help lists a command's options, `source <(weightcast completion bash)` completes "
      "them. They also come from variables (WEIGHTCAST_BUCKET_SIZE) and from --config FILE (bucket-size = "
      "64MiB): command line over environment over file. An error is one line and an exit code: 64 command "
      "line, 65 a file's content, 66 wrong weights, 70 internal, 74 the system, 75 stopped by a signal, 76 "
      "timeout.\n",
      width);
  print_report(wrapped("weightcast moves freshly trained weights from trainer ranks into the memory of "
                       "inference ranks.\n\nusage: weightcast COMMAND [options]\n\n",
                       width) +
               command_list(width) + "\n" + end);
}

}  // namespace weightcast
