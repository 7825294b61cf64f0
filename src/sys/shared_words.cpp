#include "sys/shared_words.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "core/error.hpp"

namespace weightcast {

namespace {

[[noreturn]] void refuse(const char* what) {
  throw IoError(fmt::format("{}: {}", what, std::strerror(errno)));
}

}  // namespace

SharedWords::SharedWords(std::size_t words) {
  std::random_device random;
  const std::uint64_t key = (std::uint64_t{random()} << 32) | random();
  own_file_ = ::memfd_create("weightcast", MFD_CLOEXEC);
  if (own_file_ < 0) refuse("memfd_create");
  name_ = {::getpid(), own_file_, key, static_cast<std::int64_t>(words)};
  try {
    if (::ftruncate(own_file_, static_cast<off_t>(bytes())) != 0) refuse("ftruncate");
    map(own_file_);
  } catch (...) {
    unpublish();
    throw;
  }
  std::memcpy(data_, &key, sizeof key);
}

SharedWords::SharedWords(const Name& name) : name_(name) {
  const std::string path = fmt::format("/proc/{}/fd/{}", name.process, name.file);
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) refuse(path.c_str());
  struct stat found {};
  const bool whole = ::fstat(file, &found) == 0 && found.st_size == static_cast<off_t>(bytes());
  if (whole) map(file);
  ::close(file);
  // A process of another namespace may have that number.
  if (whole && std::memcmp(data_, &name.key, sizeof name.key) == 0) return;
  if (data_ != nullptr) ::munmap(data_, bytes());
  throw IoError(fmt::format("{} is of another process; run the ranks in one process namespace", path));
}

SharedWords::~SharedWords() {
  unpublish();
  if (data_ != nullptr) ::munmap(data_, bytes());
}

void SharedWords::unpublish() {
  if (own_file_ >= 0) ::close(own_file_);
  own_file_ = -1;
}

void SharedWords::map(int file) {
  void* const data = ::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (data == MAP_FAILED) refuse("mmap");
  data_ = data;
}

}  // namespace weightcast
