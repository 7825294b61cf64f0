#include "storage/left_overs.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "storage/hidden_names.hpp"
#include "storage/input_file.hpp"
#include "storage/unfinished.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

/// Whether a hidden file is the new one that the journal's replacement made, the old one, whose name it has
/// just got in exchange, or the empty one that says that the replacement broke off.
bool is_waiting(const fs::path& path, const Journal& journal) {
  struct stat there {};
  if (::lstat(path.c_str(), &there) != 0 || !S_ISREG(there.st_mode)) return false;
  const FileIdentity identity = identity_of(there);
  const bool promised = journal.entry.fresh || journal.entry.old;
  return there.st_size == 0 || identity == journal.entry.fresh || identity == journal.entry.old ||
         (!promised && identity.inode == journal.partial_inode);
}

/// Whether a hidden file is the old one that the journal names.
bool is_old_file(const fs::path& path, const Journal& journal) {
  struct stat there {};
  return journal.entry.old && ::lstat(path.c_str(), &there) == 0 && identity_of(there) == *journal.entry.old;
}

}  // namespace

struct LeftOvers::Found {
  fs::path path;
  fs::path final_path;
  std::string_view kind;
  std::string id;
  fs::file_time_type written;

  /// The path of another hidden file of the same replacement.
  std::string hidden(std::string_view of_kind) const { return hidden_path(final_path.string(), id, of_kind); }

  /// The journal of its replacement. Throws IoError.
  std::optional<Journal> journal() const { return read_journal(hidden(kJournal)); }
};

LeftOvers::LeftOvers(std::string directory, std::function<bool(std::string_view)> mine, IsOwn is_own)
    : directory_(std::move(directory)), mine_(std::move(mine)), is_own_(std::move(is_own)) {}

LeftOvers::LeftOvers(const std::string& path, IsOwn is_own)
    : LeftOvers(
          directory_of(path),
          [stem = hidden_stem(fs::path(path).filename().string())](std::string_view name) {
            return name == stem;
          },
          std::move(is_own)) {
  only_ = path;
}

bool LeftOvers::is_known_as_own(const fs::path& path) const {
  try {
    return is_own_(path);
  } catch (const IoError&) {
    return false;
  }
}

std::vector<LeftOvers::Found> LeftOvers::find(std::string_view kind) const {
  std::vector<Found> found;
  std::error_code error;
  fs::directory_iterator entry(directory_, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    const fs::path& path = entry->path();
    const std::string name = path.filename().string();
    const HiddenName hidden = parse_hidden(name);
    std::error_code ignored;
    if (hidden.kind != kind || !mine_(hidden.stem) || fs::is_directory(fs::symlink_status(path, ignored))) {
      continue;
    }
    found.push_back({path, only_.empty() ? path.parent_path() / hidden.stem : fs::path(only_), kind,
                     std::string(hidden.id), fs::last_write_time(path, ignored)});
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw IoError(fmt::format("cannot list {}: {}; check the permissions", directory_, error.message()));
  }
  std::ranges::sort(found, std::greater<>(), &Found::written);
  return found;
}

std::vector<LeftOvers::Found> LeftOvers::find_proven(std::string_view kind) const {
  std::vector<Found> found = find(kind);
  std::erase_if(found, [](const Found& one) {
    const auto journal = one.journal();
    if (!journal) return true;
    return one.kind == kPartial && !is_waiting(one.path, *journal);
  });
  return found;
}

std::set<std::string> LeftOvers::unfinished() const {
  std::set<std::string> ids;
  for (const Found& partial : find_proven(kPartial)) ids.insert(partial.id);
  return ids;
}

void LeftOvers::finish(const Found& found, const Journal& journal, bool broken_off) const {
  const std::string final_path = found.final_path.string();
  const auto hidden = [&](std::string_view kind) { return hidden_path(final_path, found.id, kind); };
  if (!broken_off) {
    if (is_old_file(hidden(kOld), journal)) ::unlink(hidden(kOld).c_str());
    ::unlink(found.path.c_str());
    return;
  }
  const UnfinishedFile file{final_path,          hidden(kPartial), hidden(kOld),
                            found.path.string(), journal.entry,    true};
  const PutBack result = weightcast::put_back(file);
  // It may have both names still.
  if (result == PutBack::kDone) ::unlink(file.old_path.c_str());
  if (result != PutBack::kRefused) return;
  throw IoError(fmt::format(
      "cannot give {} back what a job that broke off has replaced: {}; the old file is {}: put it there, or "
      "remove it",
      final_path, system_error_text(errno), file.old_path));
}

void LeftOvers::put_back(const std::set<std::string>& unfinished) const {
  std::optional<IoError> first;  // the rest is put back all the same
  std::set<fs::path> known;      // old files of which a journal tells
  for (const Found& found : find(kJournal)) {
    try {
      const auto journal = found.journal();
      if (!journal) continue;
      known.insert(fs::path(found.hidden(kOld)).filename());
      finish(found, *journal, unfinished.contains(found.id));
    } catch (const IoError& error) {
      if (!first) first = error;
    }
  }
  // Earlier versions of this program kept no journals. Others may call a file so, too.
  for (const Found& old : find(kOld)) {
    std::error_code error;
    const bool undone = unfinished.contains(old.id);
    const fs::file_type there = fs::symlink_status(old.final_path, error).type();
    if (known.contains(old.path.filename()) || (!undone && there != fs::file_type::not_found) ||
        !is_known_as_own(old.path) || (there == fs::file_type::regular && !is_known_as_own(old.final_path))) {
      continue;
    }
    fs::rename(old.path, old.final_path, error);
    if (error && undone && !first) {
      first = IoError(fmt::format("cannot give {} back to {}: {}; rename it, or remove it", old.path.string(),
                                  old.final_path.string(), error.message()));
    }
    // A file that has both names keeps them.
    if (!error) fs::remove(old.path, error);
  }
  if (first) throw IoError(*first);
}

void LeftOvers::remove_unfinished() const {
  std::error_code ignored;
  // Journals last: without the rest they say that nothing is to be undone.
  for (const std::string_view kind : {kPartial, kJournal}) {
    for (const Found& left : find_proven(kind)) fs::remove(left.path, ignored);
  }
}

void LeftOvers::clear_old() const {
  try {
    std::error_code ignored;
    for (const Found& old : find(kOld)) {
      if (is_known_as_own(old.path)) fs::remove(old.path, ignored);
    }
  } catch (const IoError&) {
    // They do no harm, and the next job will see them.
  }
}

std::string LeftOvers::strangers() const {
  std::vector<std::string> paths;
  for (const std::string_view kind : {kPartial, kJournal, kOld}) {
    for (const Found& found : find(kind)) {
      const auto journal = found.journal();
      const bool mine = kind == kOld
                            ? (journal && is_old_file(found.path, *journal)) || is_known_as_own(found.path)
                            : journal && (kind == kJournal || is_waiting(found.path, *journal));
      if (!mine) paths.push_back(found.path.string());
    }
  }
  if (paths.empty()) return "";
  return fmt::format(
      "{}{} stays: it has the name of a hidden file of this program, and nothing says that this "
      "program wrote it; remove it if nobody needs it",
      *std::ranges::min_element(paths),
      paths.size() == 1 ? "" : fmt::format(" (and {} more)", paths.size() - 1));
}

}  // namespace weightcast
