#include "storage/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <sstream>
#include <string_view>

#include "core/error.hpp"
#include "storage/durable_file.hpp"
#include "storage/hidden_names.hpp"

namespace weightcast {

namespace {

constexpr const char* kWhole = "end";

/// What the journal of that path begins with: one that was copied, or renamed, is none.
std::string beginning_of(const std::string& path) {
  const std::string name = std::filesystem::path(path).filename().string();
  const HiddenName hidden = parse_hidden(name);
  return fmt::format("weightcast replaces {} as {}: ", hidden.stem, hidden.id);
}

std::string text_of(const std::optional<FileIdentity>& file) {
  const FileIdentity known = file.value_or(FileIdentity{});
  return fmt::format("{} {} {} {}", file ? 1 : 0, known.inode, known.size, known.modified_ns);
}

std::optional<FileIdentity> file_of(std::istream& words) {
  int is_there = 0;
  FileIdentity file;
  words >> is_there >> file.inode >> file.size >> file.modified_ns;
  return is_there != 0 ? std::optional(file) : std::nullopt;
}

}  // namespace

void begin_journal(const std::string& path, std::uint64_t partial_inode) {
  write_durably(path, fmt::format("{}{}\n", beginning_of(path), partial_inode));
}

void promise_in_journal(const std::string& path, const JournalEntry& entry) {
  if (!read_journal(path)) {
    throw IoError(fmt::format(
        "cannot write {}: it was removed or replaced by somebody else; look for who does that", path));
  }
  append_durably(path, fmt::format("{} {} {}\n", text_of(entry.fresh), text_of(entry.old), kWhole));
}

std::optional<Journal> read_journal(const std::string& path) {
  std::array<char, 1024> text{};
  const int fd = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && (errno == ELOOP || errno == ENOENT)) return std::nullopt;
  struct stat there {};
  ssize_t got = fd < 0 ? -1 : ::fstat(fd, &there);
  if (got == 0 && S_ISREG(there.st_mode)) got = ::read(fd, text.data(), text.size());
  const int error = got < 0 ? errno : 0;
  if (fd >= 0) ::close(fd);
  if (error != 0) {
    throw IoError(
        fmt::format("cannot read {}, which says what a job that broke off was replacing: {}; see to that",
                    path, system_error_text(error)));
  }
  const std::string_view whole(text.data(), static_cast<std::size_t>(got));
  const std::string beginning = beginning_of(path);
  if (!whole.starts_with(beginning)) return std::nullopt;
  std::istringstream words{std::string(whole.substr(beginning.size()))};
  Journal journal;
  if (!(words >> journal.partial_inode)) return std::nullopt;
  const JournalEntry entry{file_of(words), file_of(words)};
  std::string end;
  words >> end;
  if (end == kWhole) journal.entry = entry;
  return journal;
}

}  // namespace weightcast
