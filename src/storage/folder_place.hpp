#pragma once

#include <string>

namespace weightcast {

/// Where a path leads, as this process sees it, whether or not a folder is there yet.
struct FolderPlace {
  std::string path;    ///< the whole path, behind all links that are there
  std::string number;  ///< device and inode of the nearest folder that is there, and what follows it
};

FolderPlace place_of_folder(const std::string& path);

/// Whether two paths lead to one folder. Two processes of a host may have mounted it as different devices:
/// they are told that it is one by its path.
bool is_same_folder(const FolderPlace& a, const FolderPlace& b);

}  // namespace weightcast
