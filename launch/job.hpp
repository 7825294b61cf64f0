#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/options.hpp"
#include "model/family.hpp"
#include "plan/plan.hpp"
#include "report/update_report.hpp"
#include "session/binding.hpp"
#include "session/control.hpp"
#include "session/session.hpp"
#include "storage/checkpoint.hpp"

namespace weightcast {

/// A model and the checkpoints of it that a command works on.
struct Model {
  std::unique_ptr<ModelConfig> config;
  std::unique_ptr<Family> family;
  std::vector<Checkpoint> checkpoints;
  std::vector<Binding> bindings;
};

/// The config that `--model` names (a file, or a directory with config.json), else the one beside the first
/// source, with `--layers` applied.
std::unique_ptr<ModelConfig> load_config(const Options& options);

/// Reads config and headers and binds every source to the model.
Model load_model(const Options& options);

/// The same for a job: rank 0 reads and broadcasts. Collective.
Model load_model(Control& control, const Options& options);

/// The roles and limits that the options describe.
Topology topology_of(const Options& options);
Limits limits_of(const Options& options);

/// The parts of the report that a session knows once it is open. Collective (gathers the rank map to rank 0).
JobReport describe_job(Control& control, const Options& options, const Model& model, const Session& session,
                       const Placement& placement, double startup_seconds);

/// Runs the body of a job and then `write`, on rank 0, with its end: the code and the error line, empty when
/// all went well. A failure that not all ranks have agreed on ends the job here, before anything that MPI
/// still uses is gone. Collective.
void run_job(Control& control, const Options& options, const std::function<void()>& body,
             const std::function<void(ExitCode, const std::string&)>& write);

/// `done`, `bad input`, …: the word for an exit code in JSON.
std::string status_name(ExitCode code);

/// Empties the file of option `--option`, if it was given: what an earlier run left there must not pass for
/// this run's. Pipes and devices are left alone. Throws IoError naming both when it cannot be written, so
/// that nothing is done for no report, and UsageError when the file there can have been no report.
void begin_output(const std::string& option, const std::string& path);

/// Writes text to a file; throws IoError naming it.
void write_text(const std::string& path, const std::string& text);

}  // namespace weightcast
