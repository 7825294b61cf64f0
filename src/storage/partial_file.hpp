#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "storage/file_replacement.hpp"
#include "storage/hidden_names.hpp"

namespace weightcast {

/// A file that is written under a hidden name beside its final one. Should somebody put another file there,
/// that one is not written: all writing goes to the file that was created here. It replaces nothing but the
/// file that has the final name when it is created, and has the permissions of that.
class PartialFile final : public FileReplacement {
 public:
  /// Creates the hidden file. The folder must be there. Files that are replaced together have one `id`. Who
  /// judges what has the final name, and whether it may be replaced, does so afterwards: what comes later is
  /// not replaced.
  explicit PartialFile(const std::string& final_path, const std::string& id = fresh_id());
  ~PartialFile() override;
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  /// A path that opens this very file, for libraries that want one. Throws IoError where /proc is missing.
  std::string path_of_open_file() const;

  /// Bytes that the file has now.
  std::int64_t size() const;

  /// Makes the file at least `bytes` long and reserves them on the disk, so that a full disk shows now. File
  /// systems that cannot reserve are left to fail when they are written.
  void reserve(std::int64_t bytes);

  /// Writes at a position; threads may write disjoint ranges at once.
  void write_at(std::int64_t offset, std::span<const std::byte> data);

  /// Puts everything that was written on the disk (fsync); does nothing when nothing was written since the
  /// last.
  void flush();

  void prepare() override;
  void place() override;

 private:
  struct stat status() const;
  /// Throws the error for a hidden name that leads to another file than this one, or to none.
  [[noreturn]] void fail_for_stranger() const;
  /// Throws IoError when what has the final name is something that no file replaces.
  void require_replaceable() const;
  /// Gives the file the permissions of the old one and, where that may be, its owner.
  void take_rights(const struct stat& old);
  /// Gives the old file a second, hidden name or, where a file has but one, that one. Says whether it has its
  /// final name still.
  bool keep_old_file();

  int fd_ = -1;
  std::atomic<bool> dirty_ = true;
};

/// Makes the folder of a file that is to be written. Throws IoError naming the file.
void make_folder_of(const std::string& path);

/// Throws IoError when the file system of `path`'s folder, which need not be there yet, certainly lacks
/// `bytes` of free space.
void require_space(const std::string& path, std::int64_t bytes);

/// Throws IoError when one file of `bytes` is larger than this process may write (`ulimit -f`).
void require_file_size(const std::string& path, std::int64_t bytes);

}  // namespace weightcast
