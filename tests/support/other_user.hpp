#pragma once

#include <unistd.h>

namespace weightcast::test_support {

/// While one lives a process of root acts as a user who owns nothing; any other process stays who it is.
class OtherUser {
 public:
  OtherUser() {
    constexpr uid_t kNobody = 65534;
    if (was_ == 0 && ::seteuid(kNobody) != 0) failed_ = true;
  }
  ~OtherUser() {
    if (::seteuid(was_) != 0) ::_exit(1);
  }
  OtherUser(const OtherUser&) = delete;
  OtherUser& operator=(const OtherUser&) = delete;

  /// Whether this is another user than the one before.
  bool is_another() const { return was_ == 0 && !failed_; }

 private:
  uid_t was_ = ::geteuid();
  bool failed_ = false;
};

}  // namespace weightcast::test_support
