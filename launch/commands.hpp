#pragma once

#include <span>
#include <string_view>

#include "control/control.hpp"
#include "launch/files/output_file.hpp"
#include "launch/options.hpp"

namespace weightcast {

// One function a command, one file each. They report on stdout and throw core/error.hpp's errors.
// `json` is the file of `--json`, or null.

void run_sync(Control& control, const Options& options);
/// `sync --dry-run`, in one process.
void run_dry_sync(const Options& options, OutputFile* json);
void run_serve(Control& control, const Options& options);
void run_bench(Control& control, const Options& options);
void run_trigger(const Options& options, OutputFile* json);
void run_plan(const Options& options, OutputFile* json);
void run_inspect(const Options& options, OutputFile* json);
void run_verify(const Options& options, OutputFile* json);
void run_synth(const Options& options, OutputFile* json);
void run_convert(const Options& options, OutputFile* json);
void run_hosts(const Options& options, OutputFile* json);
void run_balance(const Options& options, OutputFile* json);
void run_rebalance(Control& control, const Options& options);

struct Command {
  std::string_view name;
  std::string_view usage;
  std::string_view summary;
  /// Of a command that needs a launcher (mpirun, srun); null for one that does not.
  void (*job)(Control&, const Options&) = nullptr;
  void (*plain)(const Options&, OutputFile*) = nullptr;
  /// Of one that another program is, with options of its own: gets main's arguments and gives the exit code.
  int (*other)(int, const char* const*) = nullptr;
};

/// All commands, in the order in which people are told of them.
std::span<const Command> commands();

/// The command of that name, or null.
const Command* find_command(std::string_view name);

}  // namespace weightcast
