#pragma once

namespace weightcast {

/// Makes the process fit for what comes, before anything else is done: signals and closed streams show as
/// errors of the calls that meet them, as many files may be open as the system allows, and memory that runs
/// out leaves enough to say so. Throws
/// std::bad_alloc when there is not even that.
void prepare_process();

}  // namespace weightcast
