#pragma once

#include <boost/program_options/options_description.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace weightcast {

/// Which commands take an option: bits, in the order of commands().
enum CommandBit : unsigned {
  kSync = 1,
  kServe = 2,
  kTrigger = 4,
  kPlan = 8,
  kBench = 16,
  kInspect = 32,
  kVerify = 64,
  kSynth = 128,
  kConvert = 256,
  kHosts = 512,
  kBalance = 1024,
  kRebalance = 2048,
  kAll = 4095,
  kUpdates = kSync | kServe,
  kJobs = kUpdates | kBench,
  kTrainers = kJobs | kPlan | kVerify | kConvert,
};

/// The bit of a command; 0 for a word that is none.
unsigned bit_of(std::string_view command);

/// Whether the ranks of a job must have been given the same.
enum class Ranks : std::uint8_t { kAlike, kEachItsOwn };

struct OptionInfo {
  const char* name;      ///< `quiet,q` with its short form
  const char* argument;  ///< nullptr: a switch
  const char* help;
  unsigned commands;  ///< CommandBit
  Ranks ranks = Ranks::kAlike;
  bool repeats = false;  ///< may be given several times
};

/// Every option, in the order in which people are told of them: once for all commands to which it means the
/// same.
std::span<const OptionInfo> option_table();

/// `quiet`
std::string long_name(const OptionInfo& option);

/// An option that the environment or a file may set, as the command takes it where it does; or null.
const OptionInfo* find_option(std::string_view name, unsigned command);

/// The options of a command, as Boost wants them.
boost::program_options::options_description describe(unsigned command);

}  // namespace weightcast
