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
  /// it, with its name when that is certain; this process may have it several times.
  OutputLock(std::string lock_path, const std::string& option, const std::string& command);
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

  /// Whether there is a lock: other jobs keep away.
  bool held() const { return file_ != nullptr; }

  /// Why there is no lock, in words for the log: the file system does not know locks, or lets nobody make the
  /// file. Empty when there is one, and when there is no folder, of which those who write will speak.
  const std::string& note() const { return note_; }

  /// How many folders were made for it, see TentativeFolder.
  int made_folders() const { return folder_ ? folder_->levels() : 0; }

 private:
  /// The lock file, which all locks of this process on it share.
  class File;

  /// Makes the folder and opens the file in it; nothing when there can be none.
  std::shared_ptr<File> open();
  void give_up(int error);

  std::string path_;
  std::string note_;
  std::shared_ptr<TentativeFolder> folder_;
  std::shared_ptr<File> file_;  // last: it goes before its folder
};

/// The lock of a whole folder, and that of one file beside others.
std::string folder_lock(const std::string& directory);
std::string file_lock(const std::string& path);

}  // namespace weightcast
