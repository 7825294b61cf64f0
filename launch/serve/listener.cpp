#include "launch/serve/listener.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"

namespace weightcast {

namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Socket = asio::local::stream_protocol::socket;

constexpr std::chrono::seconds kMostSilence{10};
constexpr int kMostConnections = 256;

UpdateAnswer refusal(ExitCode code, std::string line) {
  return {code, "", "", std::move(line)};
}

/// Whether another user is at the other end.
bool is_of_other_user(Socket& socket) {
  ucred peer = {};
  socklen_t size = sizeof peer;
  const bool known = ::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
  return !known || peer.uid != ::getuid();
}

}  // namespace

class Listener::Sockets {
 public:
  explicit Sockets(const std::string& path) : acceptor_(context_), pause_(context_) {
    error_code error;
    const asio::local::stream_protocol::endpoint endpoint(path);
    // NOLINTBEGIN(bugprone-unused-return-value): it is in `error`
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kMostConnections, error);
    // NOLINTEND(bugprone-unused-return-value)
    if (error)
      throw IoError(fmt::format("{}: cannot listen, set TMPDIR to a folder that takes sockets: {}", path,
                                error.message()));
    accept();
    thread_ = std::thread([this] { context_.run(); });
  }

  ~Sockets() {
    close(refusal(ExitCode::kInputOutput, "the server has ended"));
    // Behind the answers.
    asio::post(context_, [this] { context_.stop(); });
    thread_.join();
  }

  Sockets(const Sockets&) = delete;
  Sockets& operator=(const Sockets&) = delete;

  std::optional<Waiting> first(std::chrono::microseconds most) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, most, [&] { return !waiting_.empty(); });
    if (waiting_.empty()) return std::nullopt;
    return Waiting{waiting_.front()->number, waiting_.front()->request};
  }

  void begin_update(std::optional<std::uint64_t> number) {
    const std::scoped_lock lock(mutex_);
    busy_ = true;
    if (!number || waiting_.empty() || waiting_.front()->number != *number) return;
    in_turn_ = std::move(waiting_.front());
    waiting_.pop_front();
  }

  void end_update(const UpdateAnswer& answer) {
    const std::scoped_lock lock(mutex_);
    busy_ = false;
    send_later(std::exchange(in_turn_, nullptr), answer);
  }

  void close(const UpdateAnswer& answer) {
    const std::scoped_lock lock(mutex_);
    last_answer_ = answer;
    send_later(std::exchange(in_turn_, nullptr), answer);
    for (std::shared_ptr<Connection>& connection : waiting_) send_later(std::move(connection), answer);
    waiting_.clear();
  }

 private:
  struct Connection {
    Connection(Socket accepted, std::atomic<int>& connections)
        : socket(std::move(accepted)), silence(socket.get_executor()), count(connections) {
      ++count;
    }
    ~Connection() { --count; }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    Socket socket;
    asio::steady_timer silence;
    std::string line;
    std::uint64_t number = 0;
    UpdateRequest request;
    std::atomic<int>& count;
  };
  using Shared = std::shared_ptr<Connection>;

  void accept() {
    acceptor_.async_accept([this](const error_code& error, Socket socket) {
      if (error) {
        // Too many open files, most likely: they may be fewer in a moment.
        pause_.expires_after(std::chrono::milliseconds(100));
        pause_.async_wait([this](const error_code& ended) {
          if (!ended) accept();
        });
        return;
      }
      welcome(std::make_shared<Connection>(std::move(socket), connections_));
      accept();
    });
  }

  void welcome(const Shared& connection) {
    if (is_of_other_user(connection->socket)) {
      return send(connection, refusal(ExitCode::kInputOutput, "the server belongs to another user"));
    }
    if (connections_ > kMostConnections) {
      return send(connection, refusal(ExitCode::kInputOutput, "too many requests wait; try again later"));
    }
    connection->silence.expires_after(kMostSilence);
    connection->silence.async_wait([connection](const error_code& ended) {
      error_code ignored;
      if (!ended) connection->socket.close(ignored);  // NOLINT(bugprone-unused-return-value)
    });
    asio::async_read_until(connection->socket, asio::dynamic_buffer(connection->line, kMostRequestBytes),
                           '\n', [this, connection](const error_code& error, std::size_t bytes) {
                             connection->silence.cancel();
                             if (error == asio::error::not_found) {
                               send(connection, refusal(ExitCode::kUsage, "request: the line is too long"));
                             } else if (!error) {
                               hear(connection, bytes);
                             }
                           });
  }

  void hear(const Shared& connection, std::size_t bytes) {
    if (bytes != connection->line.size()) {
      return send(connection, refusal(ExitCode::kUsage, "request: there is more than one line"));
    }
    try {
      connection->request = parse_request(connection->line);
    } catch (const std::exception& exception) {
      const Error error = error_of(exception);
      return send(connection, refusal(error.code(), error.what()));
    }
    const std::scoped_lock lock(mutex_);
    if (last_answer_) return send(connection, *last_answer_);
    if (!connection->request.queue && (busy_ || !waiting_.empty())) {
      return send(connection,
                  refusal(ExitCode::kInputOutput,
                          "another update is under way; wait for its end, or leave out --no-queue"));
    }
    connection->number = ++last_number_;
    waiting_.push_back(connection);
    arrived_.notify_all();
    watch(connection);
  }

  /// Whoever closes the connection, or says more, does not wait any longer.
  void watch(const Shared& connection) {
    connection->socket.async_wait(Socket::wait_read, [this, connection](const error_code& error) {
      if (error) return;
      const std::scoped_lock lock(mutex_);
      if (std::erase(waiting_, connection) == 0) return;
      error_code ignored;
      connection->socket.close(ignored);  // NOLINT(bugprone-unused-return-value)
    });
  }

  /// Its thread alone touches a connection's socket.
  void send_later(Shared connection, const UpdateAnswer& answer) {
    if (connection == nullptr) return;
    asio::post(context_, [connection = std::move(connection), answer] { send(connection, answer); });
  }

  /// The only thing that a connection is ever sent, which its buffer has room for.
  static void send(const Shared& connection, const UpdateAnswer& answer) {
    error_code ignored;
    // NOLINTBEGIN(bugprone-unused-return-value): whoever has gone hears nothing
    connection->socket.non_blocking(true, ignored);
    connection->socket.write_some(asio::buffer(line_of(answer)), ignored);
    connection->socket.shutdown(Socket::shutdown_both, ignored);
    connection->socket.close(ignored);
    // NOLINTEND(bugprone-unused-return-value)
  }

  std::atomic<int> connections_ = 0;  ///< outlives those that the context still has
  asio::io_context context_{1};
  asio::local::stream_protocol::acceptor acceptor_;
  asio::steady_timer pause_;
  std::mutex mutex_;  ///< of what follows
  std::condition_variable arrived_;
  std::deque<Shared> waiting_;
  Shared in_turn_;  ///< whose update is under way
  bool busy_ = false;
  std::uint64_t last_number_ = 0;
  std::optional<UpdateAnswer> last_answer_;  ///< of a listener that is closed
  std::thread thread_;
};

Listener::Listener(const std::string& socket) : sockets_(std::make_unique<Sockets>(socket)) {}

Listener::~Listener() = default;

std::optional<Listener::Waiting> Listener::first(std::chrono::microseconds most) {
  return sockets_->first(most);
}

void Listener::begin_update(std::optional<std::uint64_t> number) {
  sockets_->begin_update(number);
}

void Listener::end_update(const UpdateAnswer& answer) {
  sockets_->end_update(answer);
}

void Listener::close(const UpdateAnswer& answer) {
  sockets_->close(answer);
}

}  // namespace weightcast
