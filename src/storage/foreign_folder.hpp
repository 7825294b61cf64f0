#pragma once

#include <string>

namespace weightcast {

/// What lies in a folder that holds no checkpoint which this program reads, and what to do about it: `it
/// holds PyTorch files (pytorch_model.bin); …`, `its folder checkpoint-500 holds one; name that`. Empty when
/// nothing is recognised.
std::string describe_folder(const std::string& directory);

/// The file that a download of `name` into a folder has left unfinished, or empty.
std::string unfinished_download(const std::string& directory, const std::string& name);

}  // namespace weightcast
