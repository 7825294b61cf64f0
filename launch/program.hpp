#pragma once

namespace weightcast {

/// The whole program with the arguments of a process: runs the command that they name and returns the exit
/// code. Whatever goes wrong ends in one error line. Runs once in a process.
int run_program(int argc, const char* const* argv);

}  // namespace weightcast
