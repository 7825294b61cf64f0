#include "client/clearing.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "client/block.hpp"

namespace weightcast::client {

Clearing::Clearing() : file_(::open("/dev/shm", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  // Whoever has it needs milliseconds; a lock that somebody keeps is not waited for without end.
  constexpr double kPatience = 10;
  constexpr timespec kPeriod = {0, 1'000'000};
  const double give_up = now() + kPatience;
  while (file_ >= 0 && !held_) {
    held_ = ::flock(file_, LOCK_EX | LOCK_NB) == 0;
    if (held_ || errno != EWOULDBLOCK || now() > give_up) break;
    ::nanosleep(&kPeriod, nullptr);
  }
}

Clearing::~Clearing() {
  // Said, because a child that was forked meanwhile has the descriptor, too.
  if (held_) ::flock(file_, LOCK_UN);
  if (file_ >= 0) ::close(file_);
}

}  // namespace weightcast::client
