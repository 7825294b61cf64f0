#pragma once

#include <chrono>
#include <functional>

#include "core/error.hpp"

namespace weightcast {

/// Runs `action`, but waits for it no longer than `grace`: what touches a file system that hangs may never
/// come back. It may then still be running, so what it refers to must last as long as the process. Where the
/// system gives no thread or no memory for that, it runs here.
void within(std::chrono::milliseconds grace, const std::function<void()>& action);

/// The last of a process: undoes what it has begun to write, with a grace.
void clean_up();

/// `clean_up` and the end, without waiting for anybody.
[[noreturn]] void leave(ExitCode code);

}  // namespace weightcast
