#pragma once

#include "launch/options.hpp"
#include "launch/output_file.hpp"
#include "session/control.hpp"

namespace weightcast {

// One function a command, one file each. They report on stdout and throw core/error.hpp's errors.
// `json` is the file of `--json`, or null.

void run_sync(Control& control, const Options& options);
void run_bench(Control& control, const Options& options);
void run_plan(const Options& options, OutputFile* json);
void run_inspect(const Options& options, OutputFile* json);
void run_verify(const Options& options, OutputFile* json);
void run_synth(const Options& options);
void run_convert(const Options& options);

}  // namespace weightcast
