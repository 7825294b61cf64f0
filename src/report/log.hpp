#pragma once

#include <string_view>

namespace weightcast {

/// The log is stderr; the report is stdout. `-q` silences notes and progress, never errors.
void set_quiet(bool quiet);
bool is_quiet();

/// Text on stdout. Throws IoError when it cannot be written (full disk, closed pipe).
void print_report(std::string_view text);

/// Notes that the last line on stderr is unfinished, so that whatever comes next begins a new one.
void set_open_line(bool open);
void end_open_line();

/// `weightcast: text`
void log_note(std::string_view text);

/// `weightcast: error: text`, always; newlines become spaces, so that it stays one line.
void log_error(std::string_view text);

}  // namespace weightcast
