#pragma once

#include <string_view>

namespace weightcast {

/// The log is stderr; the report is stdout. `-q` silences notes and progress, never errors.
void set_quiet(bool quiet);
bool is_quiet();

/// From now on what print_report() prints goes where the log goes: stdout is for a program.
void set_report_beside_log();

/// Text for a program on stdout. Throws as print_report().
void print_to_stdout(std::string_view text);

/// Text on stdout, as it is. Throws IoError when it cannot be written (full disk, closed pipe). Names, paths
/// and whatever else is not this program's own belong into `printable()` before.
void print_report(std::string_view text);

/// One line on stdout, made printable.
void print_line(std::string_view text);

/// Text on stderr, as it is. That it cannot be written (closed, full, a pipe without reader) is never a
/// reason to fail.
void write_log(std::string_view text);

/// Notes that the last line on stderr is unfinished, so that whatever comes next begins a new one.
void set_open_line(bool open);
void end_open_line();

/// `weightcast: text`, as one_line() shows it.
void log_note(std::string_view text);

/// `weightcast: error: text`, always, as one_line() shows it.
void log_error(std::string_view text);

}  // namespace weightcast
