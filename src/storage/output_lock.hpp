#pragma once

#include <memory>
#include <string>

#include "storage/tentative_folder.hpp"

namespace weightcast {

/// Keeps other jobs from writing what this one writes, for as long as it lives: a hidden file that is locked
/// (flock) and says who has locked it. It goes with the lock; what a killed job leaves of it blocks nobody.
class OutputLock {
 public:
  /// Locks `lock_path` (see below), and makes its folder when that is missing. `option` is what names the
  /// output in messages, `command` what the file says that this job does. Throws IoError when another job has
  /// it, or writes what lies beside it, with its name when that is certain, and when the system refuses the
  /// folder or the lock for any reason but that it knows no locks; this process may have it several times.
  OutputLock(std::string lock_path, const std::string& option, const std::string& command);
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

  /// Throws the IoErrors that a lock would, for another job or for what is no lock, and makes nothing.
  static void look(const std::string& lock_path, const std::string& option);

  /// Whether there is a lock: other jobs keep away.
  bool held() const { return file_ != nullptr; }

  /// Throws IoError when the lock's name no longer leads to the file that is locked: its folder was moved or
  /// removed, and another job may have a lock of its own there. Without a lock there is nothing to look at.
  void require_name() const;

  /// Why there is no lock, in words for the log: the file system does not know locks, or lets nobody make the
  /// file. Empty when there is one.
  const std::string& note() const { return note_; }

  /// How many folders were made for it, see TentativeFolder.
  int made_folders() const { return folder_ ? folder_->levels() : 0; }

 private:
  /// The lock file, which all locks of this process on it share.
  class File;

  /// Makes the folder and opens the file in it; nothing when there can be none. Throws SystemRefusal.
  std::shared_ptr<File> open();
  void give_up(int error);
  /// Asks when it has its own lock: of two jobs that ask each other at least one is refused.
  static void require_alone(const std::string& path, const std::string& option);

  std::string path_;
  std::string option_;
  std::string note_;
  std::shared_ptr<TentativeFolder> folder_;
  std::shared_ptr<File> file_;  // last: it goes before its folder
};

/// The lock of a whole folder, and that of one file beside others. A folder's and that of an HDF5 file in it
/// exclude each other.
std::string folder_lock(const std::string& directory);
std::string file_lock(const std::string& path);

}  // namespace weightcast
