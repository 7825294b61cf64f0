#pragma once

#include <fstream>
#include <stdexcept>
#include <string>

#include "support/temp_dir.hpp"

namespace weightcast::fuzz {

/// A file in a folder of its own, whose content is another one for each input.
class WrittenFile {
 public:
  explicit WrittenFile(const std::string& name) : path_(folder_ / name) {}

  void write(const std::string& content) const {
    std::ofstream file(path_, std::ios::binary | std::ios::trunc);
    file << content;
    if (!file.flush()) throw std::runtime_error("cannot write " + path_);
  }

  const std::string& path() const { return path_; }
  std::string folder() const { return folder_.string(); }

 private:
  test_support::TempDir folder_;
  std::string path_;
};

}  // namespace weightcast::fuzz
