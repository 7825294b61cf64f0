#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "launch/serve/message.hpp"

namespace weightcast {

/// Takes the requests of triggers from a socket, in a thread of its own, and keeps them in their order. What
/// is no request is refused there, and so are other users; whoever goes away is forgotten.
class Listener {
 public:
  /// Throws IoError when the socket cannot be made.
  explicit Listener(const std::string& socket);
  /// Refuses whoever still waits.
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  struct Waiting {
    std::uint64_t number = 0;  ///< another one for each
    UpdateRequest request;
  };

  /// The first request that waits; none when none has come within `most`.
  std::optional<Waiting> first(std::chrono::microseconds most);

  /// An update begins, for the request of that number, if it still waits, or for none: from now on who does
  /// not want to wait is refused.
  void begin_update(std::optional<std::uint64_t> number);
  /// It has ended: whoever asked for it hears how.
  void end_update(const UpdateAnswer& answer);

  /// Answers everybody in the same way, from now on without waiting, and takes no more requests.
  void close(const UpdateAnswer& answer);

 private:
  class Sockets;
  std::unique_ptr<Sockets> sockets_;
};

}  // namespace weightcast
