#include "storage/rename.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace weightcast {

namespace {

/// 0 or the system's error.
int rename_with(unsigned flags, const std::string& from, const std::string& to) {
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0 ? 0 : errno;
}

int rename_over(const std::string& from, const std::string& to) {
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

int remove_name(const std::string& path) {
  return ::unlink(path.c_str()) == 0 ? 0 : errno;
}

bool lacks_flags(int error) {
  return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP;
}

/// 0 or the system's error.
int look_at(const std::string& path, struct stat& there) {
  return ::lstat(path.c_str(), &there) == 0 ? 0 : errno;
}

}  // namespace

bool means_no_links(int error) {
  return error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EMLINK || error == EXDEV;
}

bool is_name_of(const std::string& path, const struct stat& file) {
  struct stat there {};
  return look_at(path, there) == 0 && there.st_dev == file.st_dev && there.st_ino == file.st_ino;
}

int take_free_name(const std::string& from, const std::string& to) {
  if (const int error = rename_with(RENAME_NOREPLACE, from, to); !lacks_flags(error)) return error;
  const int error = ::link(from.c_str(), to.c_str()) == 0 ? 0 : errno;
  struct stat there {};
  // A network file system that asks twice is told that the name is taken: by this very file.
  const bool done = error == 0 || (error == EEXIST && look_at(from, there) == 0 && is_name_of(to, there));
  if (done) return remove_name(from);
  if (!means_no_links(error)) return error;
  const int look = look_at(to, there);
  if (look == 0) return EEXIST;
  return look == ENOENT ? rename_over(from, to) : look;
}

int take_name_of(const FileIdentity& expected, const std::string& from, const std::string& to) {
  const int error = rename_with(RENAME_EXCHANGE, from, to);
  if (error == ENOENT) return take_free_name(from, to);
  if (error != 0 && !lacks_flags(error)) return error;
  struct stat there {};
  const int look = look_at(error == 0 ? from : to, there);
  const bool known = look == 0 && identity_of(there) == expected;
  if (error == 0) {
    if (known) return remove_name(from);
    // Somebody has put it there, and gets the name back.
    const int back = rename_with(RENAME_EXCHANGE, from, to);
    return back == 0 ? EEXIST : back;
  }
  if (look == ENOENT) return take_free_name(from, to);
  if (look != 0) return look;
  return known ? rename_over(from, to) : EEXIST;
}

}  // namespace weightcast
