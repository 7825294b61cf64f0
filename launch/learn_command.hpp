#pragma once

namespace weightcast {

/// `weightcast learn MODEL …`: an engine's loader is in Python, and so is what learns from it. Becomes
/// `python3` (or what the variable WEIGHTCAST_PYTHON names) with the package's module weightcast.learn, which
/// takes the words behind `learn` and has an exit code of its own. Returns only where that program cannot be
/// started: 74, with a line.
int run_learn(int argc, const char* const* argv);

}  // namespace weightcast
