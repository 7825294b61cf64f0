// The first page: it is short, its links lead somewhere, and its commands work in the order in which they
// stand there. What it shows of live memory is tried in tests/python.

#include <filesystem>
#include <regex>
#include <sstream>

#include "cli/cli.hpp"

namespace weightcast::test_support {
namespace {

const std::string kRoot = WEIGHTCAST_SOURCE;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// The lines of blocks without a language that call the program, in their order, without comments.
std::vector<std::string> commands_of(const std::string& page) {
  std::vector<std::string> commands;
  bool in_block = false;
  bool shell = false;
  for (const std::string& line : lines_of(page)) {
    if (line.starts_with("```")) {
      in_block = !in_block;
      shell = in_block && line == "```";
    } else if (shell && std::regex_search(line, std::regex("^(mpirun -n [0-9]+ )?weightcast "))) {
      commands.push_back(std::regex_replace(line, std::regex(" +# .*$"), ""));
    }
  }
  return commands;
}

TEST(Readme, IsShort) {
  EXPECT_LE(lines_of(get_file(kRoot + "/README.md")).size(), 100u);
}

TEST(Readme, LinksLeadSomewhere) {
  for (const std::string page : {"README.md", "launch/README.md", "launch/python/README.md", "src/README.md",
                                 "slurm/README.md", "tests/README.md"}) {
    SCOPED_TRACE(page);
    const std::string text = get_file(kRoot + "/" + page);
    const std::regex link("\\]\\(([^)#]+)(#[^)]*)?\\)");
    for (std::sregex_iterator found(text.begin(), text.end(), link), end; found != end; ++found) {
      const std::filesystem::path to = (*found)[1].str();
      EXPECT_TRUE(std::filesystem::exists((kRoot / std::filesystem::path(page)).parent_path() / to)) << to;
    }
  }
}

class ReadmeCommands : public CliTest {};

TEST_F(ReadmeCommands, WorkInTheirOrder) {
  const std::filesystem::path folder = dir_ / "user";
  std::filesystem::create_directory(folder);
  std::filesystem::create_directory_symlink(trained(0), folder / "step-100");
  // A model whose sizes these layouts divide.
  std::filesystem::create_symlink(model_folder("Qwen3-30B-A3B") + "/config.json", folder / "config.json");
  const std::string path = std::filesystem::path(WEIGHTCAST_BINARY).parent_path();
  int tried = 0;
  for (const std::string& command : commands_of(get_file(kRoot + "/README.md"))) {
    // Those need running processes, or measure for minutes.
    if (command.find("live:") != std::string::npos || command.find("trigger") != std::string::npos ||
        command.find("bench") != std::string::npos) {
      continue;
    }
    SCOPED_TRACE(command);
    ++tried;
    CommandLine line = mpirun(1, {});
    line.words = {"bash", "-c", "cd '" + folder.string() + "' && PATH=" + path + ":$PATH && " + command};
    line.environment.emplace("OMPI_MCA_rmaps_base_oversubscribe", "1");
    EXPECT_TRUE(done(run(line)));
  }
  EXPECT_GE(tried, 5);
}

}  // namespace
}  // namespace weightcast::test_support
