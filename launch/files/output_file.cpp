#include "launch/files/output_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>

#include "control/signals.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "report/log.hpp"
#include "report/svg.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/left_overs.hpp"
#include "storage/model_files.hpp"
#include "storage/output_lock.hpp"
#include "storage/partial_file.hpp"
#include "storage/replacement.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// What this program writes where an option says: each replaces its own kind alone.
enum class Kind { kReport, kTrace, kPicture, kHosts, kExpertMap };

/// With the article.
const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kReport:
      return "a report";
    case Kind::kTrace:
      return "a trace";
    case Kind::kPicture:
      return "a picture";
    case Kind::kHosts:
      return "a file of hosts";
    case Kind::kExpertMap:
      return "an expert map";
  }
  return "";
}

struct Beginning {
  Kind kind;
  std::string_view text;
};

/// How that begins, today and in all earlier versions of this program, up to a place that no other program's
/// file reaches. Reports of jobs and of failures come first; `…` stands for the rest of a line.
constexpr std::array<Beginning, 10> kBeginnings{{
    {Kind::kReport, "{\n  \"weightcast\": \"weightcast …\n  \"command\": \""},
    {Kind::kReport, "{\n  \"weightcast\": \"plan\",\n  \"hash\": \""},
    {Kind::kReport, "{\n  \"weightcast\": \"inspect\",\n  \"path\": \""},
    {Kind::kReport, "{\n  \"weightcast\": \"verify\",\n  \"status\": \""},
    {Kind::kHosts, "# ranks of a weightcast job with live:"},
    {Kind::kExpertMap, "{\n  \"expert_map\": 1,\n  \"epoch\": "},
    {Kind::kTrace, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[]}\n"},
    {Kind::kPicture, Svg::kBeginning},
    {Kind::kTrace,
     "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":0,\"tid\":"
     "0,\"args\":"
     "{\"name\":\"rank 0 trainer"},
    {Kind::kTrace,
     "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":0,\"tid\":"
     "0,\"args\":"
     "{\"name\":\"rank 0 inference"},
}};

/// More than any of them, with a line of versions.
constexpr std::int64_t kLongestBeginning = 4096;

bool begins_as(std::string_view text, std::string_view beginning) {
  constexpr std::string_view kRestOfLine = "…";
  const std::size_t gap = beginning.find(kRestOfLine);
  if (!text.starts_with(beginning.substr(0, gap))) return false;
  if (gap == std::string_view::npos) return true;
  const std::size_t line = text.find('\n', gap);
  return line != std::string_view::npos &&
         text.substr(line).starts_with(beginning.substr(gap + kRestOfLine.size()));
}

/// What a text is by its beginning; nothing where this program has not written it.
std::optional<Kind> kind_of(std::string_view text) {
  const auto found =
      std::ranges::find_if(kBeginnings, [&](const Beginning& one) { return begins_as(text, one.text); });
  return found == kBeginnings.end() ? std::nullopt : std::optional(found->kind);
}

/// The same of a file. Throws IoError when it cannot be read.
std::optional<Kind> kind_of_file(const fs::path& path) {
  return kind_of(first_bytes(InputFile(path.string()), kLongestBeginning));
}

bool is_report(const fs::path& path) {
  return kind_of_file(path).has_value();
}

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && (a.st_mode & S_IFMT) == (b.st_mode & S_IFMT);
}

bool is_own_stream(const struct stat& there) {
  struct stat own {};
  return (::fstat(STDOUT_FILENO, &own) == 0 && same_file(own, there)) ||
         (::fstat(STDERR_FILENO, &own) == 0 && same_file(own, there));
}

/// Whether whoever opens a folder with such a file in it takes the file for part of a checkpoint, or who
/// writes there for a hidden one of theirs.
bool belongs_to_checkpoint(const std::string& path) {
  constexpr std::array<std::string_view, 3> kEnds{".safetensors", ".index.json", "_config.json"};
  constexpr std::array<std::string_view, 4> kNames{"config.json", "added_tokens.json",
                                                   "special_tokens_map.json", "vocab.json"};
  const std::string name = fs::path(path).filename().string();
  if (!parse_hidden(name).kind.empty() || (name.starts_with('.') && name.ends_with(".lock"))) return true;
  return ends_as_hdf5(name) ||
         std::ranges::any_of(kEnds, [&](std::string_view end) { return name.ends_with(end); }) ||
         std::ranges::find(kNames, name) != kNames.end() ||
         (name.starts_with("tokenizer") && name.ends_with(".json"));
}

/// How long a pipe's reader may take to come, or to take something: whoever starts it together with this
/// program must not have to be first.
constexpr std::chrono::seconds kReaderGrace{5};

/// Refusals of a folder that say nothing about the file in it: the folder cannot be written, or the file is a
/// mount of its own.
bool lets_write_in_place(int error) {
  return error == EACCES || error == EPERM || error == EROFS || error == EBUSY;
}

/// Opens a file to write to it. ENXIO for a pipe that nobody comes to read, ECANCELED when a signal asks to
/// stop before somebody does.
int open_to_write(const std::string& path, int flags, const struct stat& expected) {
  using namespace std::chrono_literals;
  const bool pipe = S_ISFIFO(expected.st_mode);
  const int all = O_WRONLY | O_NOCTTY | O_CLOEXEC | (pipe ? O_NONBLOCK : 0) | flags;
  int fd = ::open(path.c_str(), all);
  for (const auto give_up = std::chrono::steady_clock::now() + kReaderGrace;
       fd < 0 && errno == ENXIO && pipe && std::chrono::steady_clock::now() < give_up;) {
    if (hard_stop_signal() != 0) {
      errno = ECANCELED;
      break;
    }
    std::this_thread::sleep_for(10ms);
    fd = ::open(path.c_str(), all);
  }
  return fd;
}

/// Waits until a pipe takes more. The system's error, 0 when it does: ETIMEDOUT when its reader takes nothing
/// for too long, ECANCELED when a signal asks to stop.
int wait_for_reader(int fd) {
  struct stat there {};
  // The reader of what this program was started with may be a person.
  const bool patient = ::fstat(fd, &there) == 0 && is_own_stream(there);
  for (const auto give_up = std::chrono::steady_clock::now() + kReaderGrace;;) {
    constexpr int kTick = 100;  // milliseconds
    pollfd writable{fd, POLLOUT, 0};
    const int ready = ::poll(&writable, 1, kTick);
    if (ready > 0) return 0;
    if (ready < 0 && errno != EINTR) return errno;
    if (hard_stop_signal() != 0) return ECANCELED;
    if (!patient && std::chrono::steady_clock::now() > give_up) return ETIMEDOUT;
  }
}

/// Writes into the very file that is expected there: behind what it holds with O_APPEND, else in its place.
/// The system's error, 0 when that went well.
int write_into(const std::string& path, int flags, const struct stat& expected, std::string_view text) {
  const int fd = open_to_write(path, flags, expected);
  if (fd < 0) return errno;
  struct stat there {};
  int error = ::fstat(fd, &there) != 0 || !same_file(there, expected) ? ESTALE : 0;
  if (error == 0 && (flags & O_APPEND) == 0 && ::ftruncate(fd, 0) != 0) error = errno;
  while (error == 0 && !text.empty()) {
    const ssize_t put = ::write(fd, text.data(), text.size());
    if (put >= 0) text.remove_prefix(static_cast<std::size_t>(put));
    if (put < 0 && errno == EAGAIN) {
      error = wait_for_reader(fd);
    } else if (put < 0 && errno != EINTR) {
      error = errno;
    }
  }
  ::close(fd);
  return error;
}

/// A lock on a report, so that nobody clears away what another job is just writing; nothing where there can
/// be none, or another job has it.
std::unique_ptr<OutputLock> lock_report(const std::string& path) {
  std::error_code ignored;
  // No folder is made for a report.
  if (!fs::is_directory(directory_of(path), ignored)) return nullptr;
  try {
    auto lock = std::make_unique<OutputLock>(file_lock(path), "--json", "a report");
    return lock->held() ? std::move(lock) : nullptr;
  } catch (const IoError&) {
    return nullptr;
  }
}

/// Clears away what broken runs have left beside a report.
void clear_left_overs(const std::string& path) {
  if (belongs_to_checkpoint(path)) return;
  const auto lock = lock_report(path);
  if (lock == nullptr) return;
  const LeftOvers left_overs(path, &is_report);
  left_overs.put_back(left_overs.unfinished());
  if (const std::string note = left_overs.strangers(); !note.empty()) log_note(note);
  left_overs.remove_unfinished();
  left_overs.clear_old();
}

/// The path, beside which no broken run has left anything any more.
const std::string& cleared(const std::string& path) {
  std::error_code missing;
  const fs::path behind_links = fs::canonical(path, missing);
  if (path != "-" && (missing || fs::is_regular_file(behind_links, missing))) {
    clear_left_overs(behind_links.empty() ? path : behind_links.string());
  }
  return path;
}

}  // namespace

OutputFile::OutputFile(std::string option, const std::string& path, std::string first, Look /*alone*/)
    : option_(std::move(option)), path_(path), first_(std::move(first)) {
  if (path == "-") {
    stdout_ = stream_ = true;
    return;
  }
  struct stat there {};
  if (::stat(path.c_str(), &there) != 0) {
    std::error_code ignored;
    if (fs::is_symlink(path, ignored)) {
      throw UsageError(subject() + "a link to a file that is not there; name that file");
    }
  } else if (S_ISDIR(there.st_mode)) {
    throw IoError(subject() + "Is a directory; name a file that can be written");
  } else if (S_ISCHR(there.st_mode) || S_ISFIFO(there.st_mode) || is_own_stream(there)) {
    stream_ = true;
    mine_ = there;
    return;
  } else if (!S_ISREG(there.st_mode)) {
    throw UsageError(subject() + "neither a file nor a pipe nor a terminal; name a file");
  } else {
    std::error_code error;
    path_ = fs::canonical(path, error).string();
    if (error) throw IoError(subject() + error.message());
    require_report(there);
    mine_ = there;
  }
  // Neither by the name that was given nor by the one that a link leads to.
  if (belongs_to_checkpoint(path) || belongs_to_checkpoint(path_)) {
    throw UsageError(subject() +
                     "the name of a checkpoint's file, and this is a report; choose another, as report.json");
  }
}

OutputFile::OutputFile(std::string option, const std::string& path, const std::string& first)
    : OutputFile(std::move(option), cleared(path), first, Look()) {
  if (!stream_) put(first);
}

void OutputFile::look(const std::string& option, const std::string& path, const std::string& first) {
  const OutputFile file(option, path, first, Look());
  if (file.stream_ || file.mine_) return;
  const std::string folder = directory_of(file.path_);
  if (::faccessat(AT_FDCWD, folder.c_str(), W_OK | X_OK, AT_EACCESS) == 0) return;
  throw IoError(fmt::format("{}cannot create a file in {}: {}; choose a folder that can be written",
                            file.subject(), folder, system_error_text(errno)));
}

void OutputFile::write(const std::string& text) {
  written_ = stream_;
  put(text);
  written_ = true;
}

void OutputFile::put(const std::string& text) {
  if (stream_) return append(text);
  try {
    replace(text);
  } catch (const IoError& error) {
    throw IoError(subject() + error.what());
  }
}

std::string OutputFile::subject() const {
  return fmt::format("--{} {}: ", option_, printable(path_));
}

std::optional<struct stat> OutputFile::there_now() const {
  struct stat there {};
  if ((stream_ ? ::stat(path_.c_str(), &there) : ::lstat(path_.c_str(), &there)) != 0) return std::nullopt;
  return there;
}

void OutputFile::require_report(const struct stat& there) const {
  if (there.st_size == 0) return;
  std::optional<Kind> kind;
  try {
    kind = kind_of_file(path_);
  } catch (const IoError& error) {
    throw IoError(subject() + error.what());
  }
  const std::optional<Kind> own = kind_of(first_);
  if (kind && own && *kind != *own) {
    throw UsageError(fmt::format("{}what is there is {}, and this is {}; name another file, or remove it",
                                 subject(), kind_name(*kind), kind_name(*own)));
  }
  if (!kind) throw UsageError(subject() + "a file is there that is no report; name another, or remove it");
}

void OutputFile::require_mine() const {
  const auto there = there_now();
  if (there && (!mine_ || !same_file(*there, *mine_))) {
    throw IoError("somebody has put another file there, which stays; the report is not written");
  }
  if (there) require_report(*there);
}

void OutputFile::append(const std::string& text) const {
  if (stdout_) return print_to_stdout(text);
  if (const int error = write_into(path_, O_APPEND, *mine_, text); error != 0) {
    if (error == ECANCELED) {
      throw StoppedError(fmt::format("{}stopped by {}; the report could not be written", subject(),
                                     signal_name(hard_stop_signal())));
    }
    const bool unread = (error == ENXIO || error == ETIMEDOUT) && S_ISFIFO(mine_->st_mode);
    throw IoError(subject() +
                  (unread ? "nobody reads this pipe; start its reader" : system_error_text(error)) +
                  "; the report could not be written");
  }
}

void OutputFile::replace(const std::string& text) {
  const auto lock = lock_report(path_);
  try {
    PartialFile file(path_);
    file.write_at(0, std::as_bytes(std::span(text)));
    file.flush();
    require_mine();
    Replacement* all = &file;
    replace_together({&all, 1});
  } catch (const SystemRefusal& refusal) {
    if (!mine_ || !lets_write_in_place(refusal.number())) throw;
    require_mine();
    if (const int error = write_into(path_, O_NOFOLLOW, *mine_, text); error != 0) {
      throw IoError(
          fmt::format("{}; nor can it be written in place: {}", refusal.what(), system_error_text(error)));
    }
  }
  mine_ = there_now();
}

void require_other_file(const std::string& option, const std::string& path, const std::string& other_option,
                        const std::string& other) {
  std::error_code ignored;
  if (!fs::equivalent(path, other, ignored) || !fs::is_regular_file(path, ignored)) return;
  throw UsageError(
      fmt::format("--{} {}: is the file of --{}, too; name another", option, printable(path), other_option));
}

std::optional<OutputFile> begin_output(const std::string& option, const std::string& path,
                                       const std::string& first) {
  if (path.empty()) return std::nullopt;
  return OutputFile(option, path, first);
}

}  // namespace weightcast
