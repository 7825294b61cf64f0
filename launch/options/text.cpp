#include "launch/options/text.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <optional>

#include "core/error.hpp"
#include "core/units.hpp"
#include "storage/input_file.hpp"

namespace weightcast {

namespace {

constexpr std::int64_t kMostBytes = 1 << 20;

/// What a pipe gives until its end; nothing when that takes too long or is too much.
std::optional<std::string> read_to_end(int pipe) {
  using namespace std::chrono;
  constexpr auto kLimit = 2s;
  const auto give_up = steady_clock::now() + kLimit;
  std::string text;
  std::array<char, 4096> piece{};
  while (static_cast<std::int64_t>(text.size()) <= kMostBytes) {
    const auto left = duration_cast<milliseconds>(give_up - steady_clock::now()).count();
    if (left <= 0) return std::nullopt;
    // A pipe without a writer reads as if it had ended; this waits for one.
    pollfd ready{pipe, POLLIN, 0};
    if (::poll(&ready, 1, static_cast<int>(left)) <= 0) continue;
    const ssize_t got = ::read(pipe, piece.data(), piece.size());
    if (got == 0) return text;
    if (got > 0) text.append(piece.data(), static_cast<std::size_t>(got));
    if (got < 0 && errno != EAGAIN && errno != EINTR) return std::nullopt;
  }
  return std::nullopt;
}

/// The text of a pipe; nothing when the path leads to none, or there is none to be had.
std::optional<std::string> pipe_text(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  struct stat status {};
  const bool is_pipe = ::fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
  std::optional<std::string> text = is_pipe ? read_to_end(fd) : std::nullopt;
  ::close(fd);
  return text;
}

/// What a path is that options cannot be read from.
std::string why_unread(const std::string& path) {
  struct stat there {};
  if (::stat(path.c_str(), &there) != 0 || ::access(path.c_str(), R_OK) != 0) {
    return fmt::format("cannot be read: {}", system_error_text(errno));
  }
  if (S_ISDIR(there.st_mode)) return "is a folder";
  if (S_ISFIFO(there.st_mode)) return "is a pipe that is not written and closed within seconds";
  if (!S_ISREG(there.st_mode)) return "is no file";
  return there.st_size > kMostBytes ? "is longer" : "cannot be read";
}

}  // namespace

std::string options_text(const std::string& path, const std::string& label) {
  if (std::optional<std::string> text = pipe_text(path)) return *std::move(text);
  try {
    if (InputFile(path).size() <= kMostBytes) return read_text_file(path, kMostBytes);
  } catch (const IoError&) {
    // What it says is for checkpoints.
  }
  throw IoError(fmt::format("{} {}: {}; name a file of lines name = value, of at most {}", label, path,
                            why_unread(path), format_bytes(kMostBytes)));
}

}  // namespace weightcast
