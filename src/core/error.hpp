#pragma once

#include <functional>
#include <map>
#include <source_location>
#include <stdexcept>
#include <string>

namespace weightcast {

/// The process's exit codes (sysexits where one fits). The README has the table for users.
enum class ExitCode : int {
  kDone = 0,
  kUsage = 64,
  kBadInput = 65,
  kVerificationFailed = 66,
  kInternal = 70,
  kInputOutput = 74,
  kStopped = 75,
  kTimeout = 76,
};

/// Base of every error that the program raises on purpose. `what()` is one line that names the culprit (file,
/// tensor, option) and the remedy, as one_line() of core/text.hpp shows it, whatever the message quotes.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message);

  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

/// An error class for each exit code, so that a throw says what kind of thing went wrong.
template <ExitCode Code>
class ErrorOf : public Error {
 public:
  explicit ErrorOf(const std::string& message) : Error(Code, message) {}
};

using UsageError = ErrorOf<ExitCode::kUsage>;                ///< the command line is wrong
using InputError = ErrorOf<ExitCode::kBadInput>;             ///< a file's content is wrong
using VerifyError = ErrorOf<ExitCode::kVerificationFailed>;  ///< weights arrived different
using IoError = ErrorOf<ExitCode::kInputOutput>;             ///< the system refused
using StoppedError = ErrorOf<ExitCode::kStopped>;            ///< a signal asked to stop
using TimeoutError = ErrorOf<ExitCode::kTimeout>;            ///< a deadline passed

/// The program is wrong. The line ends with the place in its source, for whoever mends it:
/// `(src/plan/proof.cpp:88)`.
class InternalError : public Error {
 public:
  explicit InternalError(const std::string& message,
                         std::source_location where = std::source_location::current());
};

/// What the user wrote in place of options, for messages: by option (`bucket-size`) a variable's name or the
/// line of a file. Messages name options as `--bucket-size`; errors that error_of() makes name them so.
void call_options(std::map<std::string, std::string, std::less<>> names);

/// Any exception as an error of this program. What libraries throw when memory, threads or files are refused
/// is the system's refusal; only what is left is an internal error.
Error error_of(const std::exception& exception);

}  // namespace weightcast
