#include "launch/job/run_job.hpp"

#include <fmt/format.h>

#include <optional>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "launch/job/same_options.hpp"
#include "report/trace.hpp"

namespace weightcast {

void run_job(Control& control, const Options& options, const std::function<void(OutputFile* trace)>& body,
             const EndReport& report,
             const std::function<void(ExitCode code, const std::string& line)>& on_failure) {
  std::optional<OutputFile> json;
  std::optional<OutputFile> trace;
  const auto fail = [&](ExitCode code, const std::string& line) {
    if (on_failure) on_failure(code, line);
    write_failure(json, report, code, line);
  };
  control.last_words.on_abort(fail);
  try {
    // The first agreement is the one in which a rank with a wrong command line takes part. That rank's error
    // goes into the report, too.
    control.agreement.together([&] {
      if (control.rank() != 0) return;
      json = begin_report(options);
      if (json) require_other_file("trace", options.trace, "json", options.json);
      trace = begin_output("trace", options.trace, trace_json({}, {}));
    });
    require_same_options(control, options.alike);
    body(trace ? &*trace : nullptr);
  } catch (const AgreedFailure& failure) {
    fail(failure.code(), failure.what());
    control.last_words.on_abort({});
    throw;
  } catch (const std::exception& error) {
    control.last_words.abort_all(error_of(error));
  }
  // From here on all is done, and a signal must not make it look otherwise: no report before all ranks have
  // come here, since one that a signal still finds in an earlier wait ends the job.
  const Deadline::DeferSignals defer(control.deadline);
  control.agreement.together([] {});
  control.last_words.on_abort({});
  control.agreement.together([&] {
    if (json) report_in_place(control, [&] { json->write(report(ExitCode::kDone, "")); });
  });
}

void require_no_soft_stop(const std::string& when) {
  const int signal = soft_stop_signal();
  if (signal != 0) throw StoppedError(fmt::format("stopped by {} {}", signal_name(signal), when));
}

void report_in_place(const Control& control, const std::function<void()>& report) {
  try {
    report();
  } catch (const Error& error) {
    if (control.deadline.in_place().empty()) throw;
    throw Error(error.code(), fmt::format("{}; {}", error.what(), control.deadline.in_place()));
  }
}

}  // namespace weightcast
