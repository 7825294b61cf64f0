#pragma once

#include <string>

namespace weightcast {

/// A folder that is made for files to come. Where it was not there before it goes again in the end, with the
/// folders that were made above it, unless something lies in it.
class TentativeFolder {
 public:
  /// Makes the folder. Throws SystemRefusal when that cannot be.
  explicit TentativeFolder(const std::string& path);

  /// For one that another process has made: whichever ends last removes it.
  TentativeFolder(const std::string& path, int levels);

  ~TentativeFolder();
  TentativeFolder(const TentativeFolder&) = delete;
  TentativeFolder& operator=(const TentativeFolder&) = delete;

  /// How many folders were made: this one and those above it.
  int levels() const { return levels_; }

 private:
  std::string path_;
  int levels_ = 0;
};

/// Throws SystemRefusal where a folder is not there and could not be made, or where this process could make
/// no file in it. Makes nothing.
void require_folder(const std::string& path);

}  // namespace weightcast
