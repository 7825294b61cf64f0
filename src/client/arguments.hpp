#pragma once

#include <cstdint>

namespace weightcast::client {

/// Each fails for an argument that makes no sense, before anything is done.

/// A place that a call reads, or writes its answer to.
int require_given(const void* place, const char* what);

/// A text of a manifest: `what` it is, for the line.
int require_text(const char* text, const char* what);

/// The name of a tensor: a text that is not empty.
int require_name(const char* name, const char* what);

/// How long a call may wait: neither negative nor endless.
int require_seconds(double seconds);

/// Of weights: they count from 0.
int require_version(std::int64_t version);

}  // namespace weightcast::client
