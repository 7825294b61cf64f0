// What triggers and a server say to each other, and what becomes of whoever says something else.

#include "launch/serve/listener.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <future>
#include <string>
#include <thread>

#include "core/error.hpp"
#include "launch/serve/ask.hpp"
#include "launch/serve/server_file.hpp"
#include "launch/serve/socket_folder.hpp"
#include "support/files.hpp"
#include "support/other_user.hpp"
#include "support/temp_dir.hpp"

namespace weightcast {

namespace {

using namespace std::chrono_literals;
using test_support::TempDir;

/// A client that says what it likes.
class RawClient {
 public:
  explicit RawClient(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { ::close(fd_); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void say(const std::string& text) const {
    static_cast<void>(!::send(fd_, text.data(), text.size(), MSG_NOSIGNAL));
  }
  /// All that comes until the end.
  std::string hear() const {
    std::string heard;
    char piece[4096];
    for (ssize_t got = 0; (got = ::recv(fd_, piece, sizeof piece, 0)) > 0;)
      heard.append(piece, static_cast<std::size_t>(got));
    return heard;
  }

 private:
  int fd_;
  bool connected_ = false;
};

class ListenerTest : public ::testing::Test {
 protected:
  std::future<UpdateAnswer> ask(const UpdateRequest& request) {
    return std::async(std::launch::async,
                      [this, request] { return ask_server(folder_.socket(), request, 60s, [] {}); });
  }
  Listener::Waiting first() {
    for (;;) {
      if (const auto waiting = listener_.first(10ms)) return *waiting;
    }
  }
  /// What the listener says to that line.
  std::string answer_to(const std::string& text) const {
    const RawClient client(folder_.socket());
    client.say(text);
    return client.hear();
  }
  /// Requests are still taken.
  void expect_unharmed() {
    auto answer = ask({42, true});
    const Listener::Waiting waiting = first();
    EXPECT_EQ(waiting.request.version, 42);
    listener_.begin_update(waiting.number);
    listener_.end_update({ExitCode::kDone, "row\n", "note", ""});
    EXPECT_EQ(answer.get().report, "row\n");
  }

  SocketFolder folder_;
  Listener listener_{folder_.socket()};
};

TEST_F(ListenerTest, AnswersReachWhoeverAsked) {
  auto failed = ask({std::nullopt, true});
  Listener::Waiting waiting = first();
  EXPECT_EQ(waiting.request.version, std::nullopt);
  listener_.begin_update(waiting.number);
  auto next = ask({5, true});
  EXPECT_EQ(first().request.version, 5);
  listener_.end_update({ExitCode::kInputOutput, "", "", "engine 3 has declined: \"no\"\n\x1b"});
  const UpdateAnswer answer = failed.get();
  EXPECT_EQ(answer.code, ExitCode::kInputOutput);
  EXPECT_EQ(answer.error, "engine 3 has declined: \"no\"\n\x1b");
  EXPECT_EQ(answer.version, std::nullopt);
  waiting = first();
  listener_.begin_update(waiting.number);
  listener_.end_update({ExitCode::kDone, "", "", "", 5, true});
  const UpdateAnswer there = next.get();
  EXPECT_EQ(there.code, ExitCode::kDone);
  EXPECT_EQ(there.version, 5);
  EXPECT_TRUE(there.was_there);
  EXPECT_FALSE(listener_.first(1ms));
}

TEST_F(ListenerTest, WhoDoesNotWantToWaitIsRefused) {
  listener_.begin_update(std::nullopt);
  EXPECT_EQ(ask({1, false}).get().code, ExitCode::kInputOutput);
  auto waits = ask({1, true});
  const Listener::Waiting waiting = first();
  listener_.end_update({});
  EXPECT_EQ(ask({1, false}).get().code, ExitCode::kInputOutput);
  listener_.begin_update(waiting.number);
  listener_.end_update({});
  EXPECT_EQ(waits.get().code, ExitCode::kDone);
}

TEST_F(ListenerTest, NonsenseIsRefusedAndHarmsNobody) {
  for (const char* text : {
           "\n",
           "nonsense\n",
           "{}\n",
           "[1]\n",
           "{\"weightcast\": 2, \"request\": \"update\"}\n",
           "{\"weightcast\": 1, \"request\": \"format\"}\n",
           "{\"weightcast\": 1, \"request\": \"update\", \"version\": -1}\n",
           "{\"weightcast\": 1, \"request\": \"update\", \"version\": 1.5}\n",
           "{\"weightcast\": 1, \"request\": \"update\", \"version\": 1e300}\n",
           "{\"weightcast\": 1, \"request\": \"update\", \"version\": [[[[1]]]]}\n",
           "{\"weightcast\": 1, \"request\": \"update\", \"queue\": 1}\n",
           "{\"weightcast\": 1, \"request\": \"update\", \"request\": \"update\"}\n",
           "{\"weightcast\": 1, \"request\": \"update\"}\nmore\n",
       }) {
    SCOPED_TRACE(text);
    const UpdateAnswer answer = parse_answer(answer_to(text));
    EXPECT_NE(answer.code, ExitCode::kDone);
    EXPECT_NE(answer.error, "");
  }
  EXPECT_EQ(parse_answer(answer_to(std::string(2 * kMostRequestBytes, 'x'))).code, ExitCode::kUsage);
  expect_unharmed();
}

TEST_F(ListenerTest, WhoeverGoesAwayIsForgotten) {
  {
    const RawClient half(folder_.socket());
    half.say("{\"weightcast\":");
  }
  {
    const RawClient gone(folder_.socket());
    gone.say(line_of(UpdateRequest{1, true}));
    EXPECT_EQ(first().request.version, 1);
  }
  while (listener_.first(1ms)) continue;
  // And who goes while it has its turn.
  auto client = std::make_unique<RawClient>(folder_.socket());
  client->say(line_of(UpdateRequest{2, true}));
  listener_.begin_update(first().number);
  client.reset();
  listener_.end_update({});
  expect_unharmed();
}

TEST_F(ListenerTest, SilenceIsNoRequest) {
  const RawClient silent(folder_.socket());
  EXPECT_TRUE(silent.connected());
  expect_unharmed();
}

TEST_F(ListenerTest, OtherUsersAreRefused) {
  // Where the folder lets them in.
  const std::filesystem::path socket = folder_.socket();
  std::filesystem::permissions(socket.parent_path(), std::filesystem::perms::all);
  std::filesystem::permissions(socket, std::filesystem::perms::all);
  {
    const test_support::OtherUser other;
    if (!other.is_another()) GTEST_SKIP() << "needs root";
    EXPECT_NE(answer_to(line_of(UpdateRequest{})).find("another user"), std::string::npos);
  }
  expect_unharmed();
}

TEST_F(ListenerTest, AnUpdateIsForTheRequestThatItWasOrderedFor) {
  std::uint64_t number = 0;
  {
    const RawClient gone(folder_.socket());
    gone.say(line_of(UpdateRequest{1, true}));
    number = first().number;
  }
  auto other = ask({2, true});
  while (first().number == number) continue;
  listener_.begin_update(number);
  listener_.end_update({ExitCode::kUsage, "", "", "of another"});
  listener_.begin_update(first().number);
  listener_.end_update({});
  EXPECT_EQ(other.get().code, ExitCode::kDone);
}

TEST_F(ListenerTest, AllHearOfTheEnd) {
  auto in_turn = ask({1, true});
  listener_.begin_update(first().number);
  auto waiting = ask({2, true});
  static_cast<void>(first());
  listener_.close({ExitCode::kStopped, "", "", "stopped by SIGTERM"});
  for (auto* one : {&in_turn, &waiting}) EXPECT_EQ(one->get().code, ExitCode::kStopped);
  EXPECT_EQ(ask({3, true}).get().code, ExitCode::kStopped);
}

TEST_F(ListenerTest, ALongAnswerIsCut) {
  auto answer = ask({});
  listener_.begin_update(first().number);
  listener_.end_update({ExitCode::kUsage, std::string(1 << 20, '\x01'), "", std::string(1 << 20, 'e')});
  EXPECT_EQ(answer.get().code, ExitCode::kUsage);
}

TEST(Ask, ThereMustBeSomebody) {
  const TempDir dir("/tmp");
  EXPECT_THROW(ask_server(dir / "socket", {}, 1s, [] {}), IoError);
  EXPECT_THROW(ask_server(std::string(200, 'x'), {}, 1s, [] {}), InputError);
  const SocketFolder folder;
  const Listener listener(folder.socket());
  EXPECT_THROW(ask_server(folder.socket(), {}, 0s, [] {}), TimeoutError);
  EXPECT_THROW(ask_server(folder.socket(), {}, 60s, [] { throw StoppedError("told to"); }), StoppedError);
}

TEST(Ask, AQueueThatNobodyEmptiesIsNotWaitedForWithoutEnd) {
  const TempDir dir("/tmp");
  const std::string path = dir / "socket";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const int server = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(server, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(server, 0), 0);
  const RawClient first(path);  // and the queue is full
  EXPECT_THROW(ask_server(path, {}, 0s, [] {}), TimeoutError);
  EXPECT_THROW(ask_server(path, {}, 60s, [] { throw StoppedError("told to"); }), StoppedError);
  ::close(server);
}

TEST(Socket, ItsFolderIsOwnAndGoesWithIt) {
  std::string socket;
  {
    const SocketFolder folder;
    socket = folder.socket();
    const Listener listener(socket);
    struct stat status = {};
    ASSERT_EQ(::stat(std::filesystem::path(socket).parent_path().c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777U, 0700U);
  }
  EXPECT_FALSE(std::filesystem::exists(std::filesystem::path(socket).parent_path()));
}

TEST(ServerFiles, SayWhereTheServerIs) {
  const TempDir dir("/tmp");
  const ServerAddress address = own_address("/tmp/weightcast-abcdef/socket");
  {
    const ServerFile file(dir.string(), address);
    struct stat status = {};
    ASSERT_EQ(::stat(server_file_path(dir.string()).c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777U, 0600U);
    const ServerAddress read = read_server_file(dir.string());
    EXPECT_EQ(read.host, address.host);
    EXPECT_EQ(read.pid, ::getpid());
    EXPECT_EQ(read.socket, address.socket);
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.string()));
  EXPECT_THROW(read_server_file(dir.string()), IoError);
}

TEST(ServerFiles, AStaleOneIsReplacedAndItsSocketRemoved) {
  const TempDir dir("/tmp");
  const std::string folder = dir / "weightcast-abcdef";
  std::filesystem::create_directory(folder);
  { const Listener listener(folder + "/socket"); }
  ASSERT_TRUE(std::filesystem::exists(folder + "/socket"));
  test_support::put_file(dir / "notes/socket", "somebody's");
  const auto text_of = [&](const std::string& socket) {
    const ServerFile file(dir.string(), own_address(socket));
    return test_support::get_file(server_file_path(dir.string()));
  };
  const std::string stale = text_of(folder + "/socket");
  const std::string wrong = text_of(dir / "notes/socket");
  test_support::put_file(server_file_path(dir.string()), stale);
  {
    remove_dead_server(dir.string());
    EXPECT_FALSE(std::filesystem::exists(server_file_path(dir.string())));
    const ServerFile file(dir.string(), own_address("/tmp/other"));
    EXPECT_FALSE(std::filesystem::exists(folder));
    EXPECT_EQ(read_server_file(dir.string()).socket, "/tmp/other");
  }
  // What is no socket of a server stays.
  test_support::put_file(server_file_path(dir.string()), wrong);
  remove_dead_server(dir.string());
  const ServerFile file(dir.string(), own_address("/tmp/other"));
  EXPECT_TRUE(std::filesystem::exists(dir / "notes/socket"));
}

TEST(ServerFiles, ACopyOfOneTakesNoSocketAway) {
  const TempDir dir("/tmp");
  const SocketFolder folder;
  const Listener listener(folder.socket());
  std::string text;
  {
    const ServerFile file(dir.string(), own_address(folder.socket()));
    text = test_support::get_file(server_file_path(dir.string()));
  }
  test_support::put_file(dir / "copy/server.json", text);
  remove_dead_server(dir / "copy");
  const ServerFile file(dir / "copy", own_address("/tmp/other"));
  EXPECT_TRUE(RawClient(folder.socket()).connected());
}

TEST(ServerFiles, NothingInThemIsTrusted) {
  const TempDir dir("/tmp");
  const char* const negative =
      R"({"weightcast": 1, "host": "a", "boot_id": "b", "pid": -1, "uid": 0, "job": "", "socket": ""})";
  for (const char* text :
       {"", "{}", "[]", "{\"weightcast\": 2}", "{\"weightcast\": 1, \"host\": 3}", negative}) {
    SCOPED_TRACE(text);
    test_support::put_file(server_file_path(dir.string()), text);
    EXPECT_THROW(read_server_file(dir.string()), InputError);
    // A server that starts there is not kept from it.
    const ServerFile file(dir.string(), own_address("/tmp/other"));
    EXPECT_EQ(read_server_file(dir.string()).socket, "/tmp/other");
  }
}

}  // namespace

}  // namespace weightcast
