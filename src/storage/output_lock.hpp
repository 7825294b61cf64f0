#pragma once

#include <string>

namespace weightcast {

/// Keeps other jobs from writing what this one writes, for as long as it lives: a hidden file that is locked
/// (flock) and says who has locked it. It goes with the lock; what a killed job leaves of it blocks nobody.
class OutputLock {
 public:
  /// Locks `lock_path` (see below), and makes its folder when that is missing. `option` is what names the
  /// output in messages, `command` what the file says that this job does. Throws IoError that names the
  /// holder when another job has it; this process may have it several times.
  OutputLock(std::string lock_path, const std::string& option, const std::string& command);
  ~OutputLock();
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

  /// Why there is no lock, in words for the log: the file system does not know locks, or lets nobody make the
  /// file. Empty when there is one, and when there is no folder, of which those who write will speak.
  const std::string& note() const { return note_; }

 private:
  void acquire(const std::string& option, const std::string& command);
  /// Opens the lock file; false when there can be none.
  bool open();
  /// The system's error for locking what is open, 0 when that went well.
  int lock() const;
  void close();
  void say_holder(const std::string& line) const;
  void give_up(int error);

  std::string path_;
  std::string made_folder_;  ///< empty when it was there before
  std::string note_;
  int fd_ = -1;
};

/// The lock of a whole folder, and that of one file beside others.
std::string folder_lock(const std::string& directory);
std::string file_lock(const std::string& path);

}  // namespace weightcast
