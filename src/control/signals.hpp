#pragma once

namespace weightcast {

/// From here on SIGUSR1 asks to stop after the update in progress, SIGTERM and SIGINT (or a second SIGUSR1)
/// to stop at once. Handlers only take note; Control acts on it.
void watch_signals();

/// The signal that asked to stop after the update in progress, or 0.
int soft_stop_signal();

/// The signal that asked to stop at once, or 0.
int hard_stop_signal();

/// For commands that no Control watches: throws StoppedError when any of the signals has come. `what` is what
/// that means, for the line: `nothing was changed`.
void require_no_signal(const char* what);

/// `SIGUSR1`
const char* signal_name(int signal);

}  // namespace weightcast
