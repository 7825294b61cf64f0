#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "launch/serve/message.hpp"

namespace weightcast {

/// Asks the server at a socket and waits for its answer; `poll`, called now and then, may end the wait by
/// what it throws. Throws IoError when nobody listens there, when another user does, or when the server ends
/// without an answer, TimeoutError, and InputError for what is no answer.
UpdateAnswer ask_server(const std::string& socket, const UpdateRequest& request, std::chrono::seconds most,
                        const std::function<void()>& poll);

/// Whether somebody listens at a socket.
bool is_listened_to(const std::string& socket);

}  // namespace weightcast
