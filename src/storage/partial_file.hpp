#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace weightcast {

/// A file being written under a hidden name beside its final one (`.NAME.partial`). It takes the final name
/// with `rename_to_final`; destroyed before that it is removed. Errors are IoError naming the final path.
class PartialFile {
 public:
  /// Chooses the names and removes what an earlier, broken run left; makes missing folders. Nothing is
  /// created yet.
  explicit PartialFile(std::string final_path);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  const std::string& final_path() const { return final_path_; }
  const std::string& partial_path() const { return partial_path_; }

  /// Opens the partial file for writing, creating it unless somebody already has.
  void open();

  /// Makes the file at least `bytes` long and reserves them on the disk, so that a full disk shows now. File
  /// systems that cannot reserve are left to fail when they are written.
  void reserve(std::int64_t bytes);

  /// Writes at a position; threads may write disjoint ranges at once.
  void write_at(std::int64_t offset, std::span<const std::byte> data);

  /// Puts everything that was written on the disk (fsync); does nothing when nothing was written since the
  /// last.
  void flush();

  /// Gives the file its final name. Call `sync_directory` after the last one.
  void rename_to_final();

 private:
  std::string final_path_;
  std::string partial_path_;
  int fd_ = -1;
  bool renamed_ = false;
  std::atomic<bool> dirty_ = false;
};

/// Throws IoError when the file system of `path`'s folder certainly lacks `bytes` of free space.
void require_space(const std::string& path, std::int64_t bytes);

/// Throws IoError when one file of `bytes` is larger than this process may write (`ulimit -f`).
void require_file_size(const std::string& path, std::int64_t bytes);

/// Puts a folder's names on the disk (fsync). Throws IoError.
void sync_directory(const std::string& directory);

/// The folder of a path, `.` when it names none.
std::string directory_of(const std::string& path);

}  // namespace weightcast
