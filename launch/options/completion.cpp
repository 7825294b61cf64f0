#include "launch/options/completion.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "launch/commands.hpp"
#include "launch/options/table.hpp"

namespace weightcast {

namespace {

/// `--source --model …` of a command.
std::string options_of(std::string_view command) {
  std::vector<std::string> names;
  for (const OptionInfo& option : option_table()) {
    if ((option.commands & bit_of(command)) != 0) names.push_back("--" + long_name(option));
  }
  return fmt::format("{}", fmt::join(names, " "));
}

}  // namespace

std::string bash_completion() {
  std::vector<std::string_view> names;
  std::string cases;
  for (const Command& command : commands()) {
    names.push_back(command.name);
    cases += fmt::format("    {}) words='{}' ;;\n", command.name, options_of(command.name));
  }
  // The program may stand behind mpirun and its options.
  return fmt::format(R"bash(_weightcast() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command= words= at
  for ((at = 0; at < COMP_CWORD; ++at)); do
    [ "${{COMP_WORDS[at]##*/}}" = weightcast ] && command=${{COMP_WORDS[at + 1]}} && break
  done
  [ "$((at + 1))" -eq "$COMP_CWORD" ] && command=
  case $command in
    '') words='{} help version completion' ;;
{}  esac
  if [ -z "$command" ] || [[ $word == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
  else
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  fi
}}
complete -o filenames -F _weightcast weightcast
)bash",
                     fmt::join(names, " "), cases);
}

}  // namespace weightcast
