#include "storage/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <sstream>

#include "core/error.hpp"
#include "storage/durable_file.hpp"

namespace weightcast {

namespace {

constexpr const char* kWhole = "end";

std::string text_of(const JournalEntry& entry) {
  const FileIdentity fresh = entry.fresh.value_or(FileIdentity{});
  return fmt::format("{} {} {} {} {} {}\n", entry.had_old ? 1 : 0, entry.fresh ? 1 : 0, fresh.inode,
                     fresh.size, fresh.modified_ns, kWhole);
}

}  // namespace

void write_journal(const std::string& path, const JournalEntry& entry) {
  write_durably(path, text_of(entry));
}

JournalEntry read_journal(const std::string& path) {
  std::array<char, 256> text{};
  const int fd = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  const ssize_t got = fd < 0 ? -1 : ::read(fd, text.data(), text.size());
  const int error = got < 0 ? errno : 0;
  if (fd >= 0) ::close(fd);
  if (error != 0) {
    throw IoError(
        fmt::format("cannot read {}, which says what a job that broke off was replacing: {}; see to that",
                    path, system_error_text(error)));
  }
  std::istringstream words(std::string(text.data(), static_cast<std::size_t>(got)));
  int had_old = 1;
  int has_fresh = 0;
  FileIdentity fresh;
  std::string end;
  words >> had_old >> has_fresh >> fresh.inode >> fresh.size >> fresh.modified_ns >> end;
  if (end != kWhole) return {std::nullopt, true};
  return {has_fresh != 0 ? std::optional(fresh) : std::nullopt, had_old != 0};
}

}  // namespace weightcast
