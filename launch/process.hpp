#pragma once

namespace weightcast {

/// Makes the process fit for what comes, before anything else is done: signals and closed streams show as
/// errors of the calls that meet them, as many files may be open as the system allows, and memory that runs
/// out leaves enough to say so. Throws
/// std::bad_alloc when there is not even that.
void prepare_process();

/// A plain command that does not act on a signal to stop ends within some seconds, and says then what that
/// leaves: `nothing was changed`. Until the next call.
void set_left_when_stopped(const char* left);

}  // namespace weightcast
