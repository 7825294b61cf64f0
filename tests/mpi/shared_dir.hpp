#pragma once

#include <optional>
#include <string>

#include "control/control.hpp"
#include "support/temp_dir.hpp"
#include "world.hpp"

namespace weightcast::mpi_test {

/// Rank 0's temporary folder, known to all; gone when rank 0 has left the test.
class SharedDir {
 public:
  explicit SharedDir(Control& control) : control_(control) {
    if (control.rank() == 0) dir_.emplace();
    path_ = control.agreement.broadcast(dir_ ? dir_->string() : "");
  }
  ~SharedDir() { meet(control_.comm()); }
  SharedDir(const SharedDir&) = delete;
  SharedDir& operator=(const SharedDir&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  Control& control_;
  std::optional<test_support::TempDir> dir_;
  std::string path_;
};

}  // namespace weightcast::mpi_test
