#pragma once

namespace weightcast::client {

/// Of all that is built here, the client library and the programs: `0.1.0`.
const char* version();

}  // namespace weightcast::client
