// Faults done to real jobs, one behind the other: a rank is killed, stopped or slow at any call that it
// makes, calls fail, disks fill up, sources change, messages are lost or damaged. After each: did the job end
// in time, with a documented code and one line, is one version there whole, is nothing left, does the next
// job succeed?
//
//     weightcast-faults --seeds 0:150 [--results FILE]      # goes on where FILE ends; appends to it
//     weightcast-faults --seeds 17:18 --show                # one again, with what the job said
//     weightcast-faults --seeds 0:100 --only fail:allocate  # others of that kind

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>

#include "faults/campaign.hpp"

namespace {

using namespace weightcast::faults;

nlohmann::json json_of(const Trial& trial) {
  return {{"seed", trial.seed},
          {"scenario", trial.scenario},
          {"call", kCallNames.at(static_cast<std::size_t>(trial.fault.call))},
          {"deed", kDeedNames.at(static_cast<std::size_t>(trial.fault.deed))},
          {"fault", trial.fault.words()},
          {"happened", trial.happened},
          {"seconds", trial.seconds},
          {"code", trial.code},
          {"broken", trial.broken},
          {"output", trial.output}};
}

/// What was tried, by deed and call.
class Table {
 public:
  void add(const nlohmann::json& trial) {
    if (!trial.at("happened").get<bool>()) {
      ++missed_;
      return;
    }
    Cell& cell = cells_[trial.at("deed")][trial.at("call")];
    ++cell.tried;
    if (trial.at("broken").empty()) ++cell.kept;
    seconds_.push_back(trial.at("seconds"));
    longest_[trial.at("deed")] = std::max(longest_[trial.at("deed")], trial.at("seconds").get<double>());
  }

  void print() const {
    int tried = 0;
    int kept = 0;
    fmt::print("{:10}  {:>7}  {:>11}  {:>7}   {}\n", "fault", "tried", "as promised", "longest",
               "at calls of");
    for (const auto& [deed, row] : cells_) {
      Cell sum;
      std::string calls;
      for (const auto& [call, cell] : row) {
        sum.tried += cell.tried;
        sum.kept += cell.kept;
        calls += fmt::format("{}{} {}", calls.empty() ? "" : ", ", call, cell.tried);
      }
      fmt::print("{:10}  {:7}  {:11}  {:5.1f} s   {}\n", deed, sum.tried, sum.kept, longest_.at(deed), calls);
      tried += sum.tried;
      kept += sum.kept;
    }
    std::vector<double> sorted = seconds_;
    std::sort(sorted.begin(), sorted.end());
    fmt::print(
        "{:10}  {:7}  {:11}  {:5.1f} s   median {:.2f} s from the fault to the end of the job; {} jobs did "
        "not come to their fault\n",
        "all", tried, kept, sorted.empty() ? 0 : sorted.back(),
        sorted.empty() ? 0 : sorted.at(sorted.size() / 2), missed_);
  }

 private:
  struct Cell {
    int tried = 0;
    int kept = 0;
  };
  std::map<std::string, std::map<std::string, Cell>> cells_;
  std::map<std::string, double> longest_;
  std::vector<double> seconds_;
  int missed_ = 0;
};

std::pair<std::uint64_t, std::uint64_t> range_of(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) throw std::invalid_argument("--seeds wants FROM:TO, not '" + text + "'");
  return {std::stoull(text.substr(0, colon)), std::stoull(text.substr(colon + 1))};
}

int run_campaign(const boost::program_options::variables_map& options) {
  const auto [from, to] = range_of(options.at("seeds").as<std::string>());
  const bool show = options.contains("show");
  Table table;
  std::set<std::uint64_t> done;
  std::ofstream results;
  if (options.contains("results")) {
    const std::string path = options.at("results").as<std::string>();
    std::ifstream earlier(path);
    for (std::string line; std::getline(earlier, line);) {
      const auto trial = nlohmann::json::parse(line, nullptr, false);
      if (trial.is_discarded()) continue;  // the last line of a run that was ended
      done.insert(trial.at("seed").get<std::uint64_t>());
      table.add(trial);
    }
    results.open(path, std::ios::app);
  }
  std::map<std::size_t, std::unique_ptr<Campaign>> campaigns;
  bool all_kept = true;
  for (std::uint64_t seed = from; seed < to; ++seed) {
    if (done.contains(seed)) continue;
    const std::size_t index = seed % scenarios().size();
    auto& campaign = campaigns[index];
    if (!campaign)
      campaign = std::make_unique<Campaign>(scenarios().at(index), options.at("deadline").as<int>(),
                                            options.at("only").as<std::string>());
    const Trial trial = campaign->try_out(seed);
    const nlohmann::json json = json_of(trial);
    table.add(json);
    if (results.is_open())
      results << json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace) << std::endl;
    if (!trial.broken.empty() || show) {
      fmt::print("seed {}: {}, {}: code {} after {:.2f} s{}\n", seed, trial.scenario, trial.fault.words(),
                 trial.code, trial.seconds, trial.broken.empty() ? ": as promised" : "");
      for (const std::string& what : trial.broken) fmt::print("  broken: {}\n", what);
      if (!trial.output.empty()) fmt::print("{}\n", trial.output);
      std::fflush(stdout);
    }
    all_kept = all_kept && trial.broken.empty();
    // What is broken may have left anything.
    if (!trial.broken.empty()) campaign.reset();
  }
  table.print();
  return all_kept ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  namespace po = boost::program_options;
  po::options_description description(
      "weightcast-faults: faults done to real jobs, and what they break of what is promised");
  description.add_options()("seeds", po::value<std::string>()->default_value("0:150"),
                            "FROM:TO, a fault each")(
      "results", po::value<std::string>(), "a file of JSON lines: seeds that are in it are not tried again")(
      "deadline", po::value<int>()->default_value(5), "seconds that a phase of a job may take")(
      "only", po::value<std::string>()->default_value(""),
      "only faults of that kind: kill, kill:write, fail:allocate, ...")("show", "print every trial")(
      "help", "this text");
  try {
    po::variables_map options;
    po::store(po::parse_command_line(count, words, description), options);
    po::notify(options);
    if (options.contains("help")) {
      std::ostringstream text;
      text << description;
      fmt::print("{}", text.str());
      return 0;
    }
    return run_campaign(options);
  } catch (const std::exception& exception) {
    fmt::print(stderr, "weightcast-faults: {}\n", exception.what());
    return 2;
  }
}
