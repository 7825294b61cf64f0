#include "launch/serve/ask.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <thread>

#include "core/error.hpp"

namespace weightcast {

UpdateAnswer ask_server(const std::string& socket, const UpdateRequest& request, std::chrono::seconds most,
                        const std::function<void()>& poll) {
  namespace asio = boost::asio;
  using boost::system::error_code;
  using Protocol = asio::local::stream_protocol;
  if (socket.size() >= sizeof(sockaddr_un::sun_path))
    throw InputError("the socket's name is too long; start the server again with a shorter TMPDIR");
  asio::io_context context;
  Protocol::socket server(context);
  error_code error;
  const auto give_up = std::chrono::steady_clock::now() + most;
  constexpr std::chrono::milliseconds kLook{50};
  const auto look = [&] {
    poll();
    if (std::chrono::steady_clock::now() <= give_up) return;
    throw TimeoutError(fmt::format("no answer within {} s; an update that has begun goes on: raise --timeout",
                                   most.count()));
  };
  server.open(Protocol(), error);    // NOLINT(bugprone-unused-return-value)
  server.non_blocking(true, error);  // NOLINT(bugprone-unused-return-value)
  for (;;) {
    server.connect(Protocol::endpoint(socket), error);  // NOLINT(bugprone-unused-return-value)
    // What Asio makes of a full queue: others wait there for a server that does not take them just now.
    if (error != asio::error::no_buffer_space) break;
    std::this_thread::sleep_for(kLook);
    look();
  }
  if (error) throw IoError(fmt::format("nobody listens at {}: {}", socket, error.message()));
  server.non_blocking(false, error);  // NOLINT(bugprone-unused-return-value)
  ucred peer = {};
  socklen_t size = sizeof peer;
  if (::getsockopt(server.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
      peer.uid != ::getuid()) {
    throw IoError(fmt::format("{}: another user listens there", socket));
  }
  const std::string line = line_of(request);
  asio::write(server, asio::buffer(line), error);
  std::string answer;
  bool done = false;
  // A server that refuses at once may have closed before it was asked.
  asio::async_read_until(server, asio::dynamic_buffer(answer, kMostAnswerBytes), '\n',
                         [&](const error_code& ended, std::size_t /*bytes*/) {
                           error = ended;
                           done = true;
                         });
  while (!done) {
    context.run_for(kLook);
    if (!done) look();
  }
  if (error) throw IoError("the server has ended before its answer, and its log says why");
  return parse_answer(answer);
}

bool is_listened_to(const std::string& socket) {
  using Protocol = boost::asio::local::stream_protocol;
  if (socket.size() >= sizeof(sockaddr_un::sun_path)) return false;
  boost::asio::io_context context;
  boost::system::error_code error;
  Protocol::socket(context).connect(Protocol::endpoint(socket),
                                    error);  // NOLINT(bugprone-unused-return-value)
  return !error;
}

}  // namespace weightcast
