#include "sys/file_mapping.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>
#include <system_error>

namespace weightcast {

/// Used again when its mapping has gone, and never freed: a handler may be looking at it.
struct FileMapping::Place {
  std::atomic<std::uintptr_t> begin = 0;
  std::atomic<std::uintptr_t> end = 0;  ///< 0 while no mapping has it
  std::atomic<bool> writable = false;
  std::atomic<bool> shrunk = false;
  std::atomic<Place*> next = nullptr;
};

namespace {

using Place = FileMapping::Place;

static_assert(std::atomic<std::uintptr_t>::is_always_lock_free, "a handler must not wait for a lock");

// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables): a handler finds nothing else
std::atomic<Place*> places = nullptr;
std::mutex places_mutex;  ///< of who changes them; the handler only reads
std::uintptr_t page_bytes = 0;
struct sigaction action_before = {};
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

/// Gives the thread that has met the end of a file memory to go on with. Calls nothing but the system.
void go_on_without_the_file(int /*signal*/, siginfo_t* info, void* /*context*/) {
  const int error = errno;
  const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Place* place = places; place != nullptr; place = place->next) {
    const std::uintptr_t end = place->end;
    if (at < place->begin || at >= end) continue;
    place->shrunk = true;
    const std::uintptr_t page = at / page_bytes * page_bytes;
    const int protection = place->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void* const address = reinterpret_cast<void*>(page);  // NOLINT(performance-no-int-to-ptr)
    if (::mmap(address, end - page, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
               0) == MAP_FAILED) {
      break;
    }
    errno = error;
    return;
  }
  // Of something else: the access is tried again, and ends as it would have without this handler.
  ::sigaction(SIGBUS, &action_before, nullptr);
}

void install_handler() {
  page_bytes = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction action = {};
  action.sa_sigaction = &go_on_without_the_file;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &action_before);
}

/// One that no mapping has; until its range is known it holds no address.
Place* take_place() {
  static std::once_flag installed;
  std::call_once(installed, &install_handler);
  const std::scoped_lock lock(places_mutex);
  Place* place = places;
  while (place != nullptr && place->end != 0) place = place->next;
  if (place == nullptr) {
    place = new Place;  // NOLINT(cppcoreguidelines-owning-memory)
    place->next = places.load();
    places = place;
  }
  place->end = 1;
  return place;
}

}  // namespace

FileMapping::FileMapping(int file, std::int64_t bytes, bool writable)
    : file_(::fcntl(file, F_DUPFD_CLOEXEC, 0)), data_(nullptr), bytes_(bytes), place_(take_place()) {
  const auto size = static_cast<std::size_t>(bytes);
  void* const memory =
      ::mmap(nullptr, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file_, 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    place_->end = 0;
    if (file_ >= 0) ::close(file_);
    throw std::system_error(error, std::generic_category());
  }
  data_ = static_cast<std::byte*>(memory);
  place_->writable = writable;
  place_->shrunk = false;
  place_->begin = reinterpret_cast<std::uintptr_t>(memory);
  place_->end = place_->begin + size;
}

FileMapping::~FileMapping() {
  ::munmap(data_, static_cast<std::size_t>(bytes_));
  place_->end = 0;
  ::close(file_);
}

void FileMapping::reserve(std::int64_t offset, std::int64_t bytes) {
  // The file's size stays, so that one that was cut is known for it.
  while (::fallocate(file_, FALLOC_FL_KEEP_SIZE, offset, bytes) != 0) {
    if (errno != EINTR) throw std::system_error(errno, std::generic_category());
  }
}

bool FileMapping::has_shrunk() const {
  struct stat status = {};
  return place_->shrunk || ::fstat(file_, &status) != 0 || status.st_size < bytes_;
}

}  // namespace weightcast
