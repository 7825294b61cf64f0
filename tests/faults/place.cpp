#include "faults/place.hpp"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "support/files.hpp"

namespace weightcast::faults {

using namespace test_support;

namespace {

constexpr int kPatience = 60;  // seconds that a job without a fault may take

std::string trained(int version) {
  return std::string(WEIGHTCAST_TEST_DATA) + "/python-coder-qwen3-moe/step" + (version == 0 ? "0" : "181");
}

}  // namespace

const std::vector<Scenario>& scenarios() {
  static const std::vector<Scenario> all{{"hdf5", 3, 1, "tp=2,ep=2", "hdf5"},
                                         {"safetensors", 4, 2, "tp=1,replicas=2", "safetensors"},
                                         {"convert", 0, 0, "", "h5"}};
  return all;
}

Place::Place(const Scenario& scenario) : scenario_(scenario) {
  for (const int version : {0, 1})
    std::filesystem::copy(trained(version), folder_ / ("source-" + std::to_string(version)),
                          std::filesystem::copy_options::recursive);
  const std::string wrong = put_back();
  if (!wrong.empty()) throw std::runtime_error(folder() + ": " + wrong);
}

CommandLine Place::command_for(int version) const {
  const std::string source = folder_ / ("source-" + std::to_string(version));
  if (scenario_.ranks == 0) {
    return {{WEIGHTCAST_BINARY, "convert", "--source", source, "--output",
             sink() + "/x." + std::string(scenario_.format)},
            {}};
  }
  return mpirun(scenario_.ranks,
                {WEIGHTCAST_BINARY, "sync", "--source", source, "--weight-version", std::to_string(version),
                 "--trainers", std::to_string(scenario_.trainers), "--inference",
                 std::string(scenario_.inference), "--sink", std::string(scenario_.format) + ":" + sink(),
                 "--json", report(), "--transport", "mpi", "--bucket-size", "256KiB"});
}

CommandLine Place::command(int deadline) const {
  CommandLine command = command_for(1);
  if (scenario_.ranks > 0) command.words.insert(command.words.end(), {"--timeout", std::to_string(deadline)});
  return command;
}

std::string Place::put_back() {
  // What a fault has done to a source is no part of the next job.
  std::filesystem::remove_all(new_source());
  std::filesystem::copy(trained(1), new_source(), std::filesystem::copy_options::recursive);
  std::filesystem::remove(report());
  CommandLine command = command_for(0);
  command.timeout = std::chrono::seconds(kPatience);
  const Outcome outcome = run(command);
  if (outcome.exit_code != 0) return "the next job fails: " + describe(outcome);
  if (version() != 0) return "the next job's version is not there";
  const auto left = litter();
  if (!left.empty()) return "the next job leaves " + left.front();
  return "";
}

std::optional<int> Place::version() const {
  for (const int version : {0, 1}) {
    const std::string source = trained(version);
    if (scenario_.ranks > 0) {
      if (run({{WEIGHTCAST_BINARY, "verify", sink(), "--source", source, "--weight-version",
                std::to_string(version)},
               {}})
              .exit_code == 0)
        return version;
      continue;
    }
    const auto digests = [](const std::string& path) {
      const Outcome outcome = run({{WEIGHTCAST_BINARY, "inspect", path, "--json", "-"}, {}});
      std::set<std::string> lines;
      if (outcome.exit_code != 0) return lines;
      const auto report = nlohmann::json::parse(outcome.out);
      for (const auto& tensor : report.at("tensors"))
        lines.insert(tensor.at("name").get<std::string>() + " " + tensor.at("digest").dump());
      return lines;
    };
    const auto found = digests(sink() + "/x." + std::string(scenario_.format));
    if (!found.empty() && found == digests(source)) return version;
  }
  return std::nullopt;
}

std::vector<std::string> Place::litter() const {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder(), ignored)) {
    const std::string name = entry.path().filename().string();
    static const std::set<std::string> kKnown{"source-0", "source-1", "out", "report.json", "record"};
    if (!kKnown.contains(name)) names.push_back(name);
  }
  for (const auto& entry : std::filesystem::directory_iterator(sink(), ignored)) {
    const std::string name = entry.path().filename().string();
    // Killed just when it had made the file: nobody can tell whose it is, and there is nothing in it.
    if (name.ends_with(".partial") && std::filesystem::file_size(entry.path(), ignored) == 0) continue;
    if (name.starts_with(".") || (!name.starts_with("rank-") && !name.starts_with("x.")))
      names.push_back("out/" + name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> Place::processes() const {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    std::ifstream file(entry.path() / "cmdline", std::ios::binary);
    std::string words{std::istreambuf_iterator<char>(file), {}};
    std::replace(words.begin(), words.end(), '\0', ' ');
    if (words.find(folder()) == std::string::npos || entry.path().filename() == std::to_string(::getpid()))
      continue;
    found.push_back(entry.path().filename().string() + ": " + words);
  }
  return found;
}

std::string Place::report_status() const {
  if (scenario_.ranks == 0) return "";
  if (!std::filesystem::exists(report())) return "missing";
  const auto json = nlohmann::json::parse(get_file(report()), nullptr, false);
  return json.is_object() && json.contains("status") ? json["status"].get<std::string>() : "damaged";
}

}  // namespace weightcast::faults
