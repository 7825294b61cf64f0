#include "client/version.hpp"

#include "client/weightcast/client.h"

namespace weightcast::client {

const char* version() {
  return WEIGHTCAST_VERSION;
}

}  // namespace weightcast::client

extern "C" const char* weightcast_version(void) {
  return weightcast::client::version();
}
