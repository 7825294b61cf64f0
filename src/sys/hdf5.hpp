#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace weightcast {

/// Holds the right to call the HDF5 library. The library is often built without thread safety, so whoever
/// calls it (closing handles included) takes this lock first; it may be taken again by the thread that has
/// it. It also keeps the library from printing its error stack, which is a setting of each thread.
class Hdf5Lock {
 public:
  Hdf5Lock();

 private:
  std::unique_lock<std::recursive_mutex> lock_;
};

/// Move-only owner of an HDF5 identifier. Make, move and destroy it under an Hdf5Lock.
template <herr_t (*Close)(hid_t)>
class Hdf5Handle {
 public:
  Hdf5Handle() = default;
  explicit Hdf5Handle(hid_t id) : id_(id) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, H5I_INVALID_HID);
    }
    return *this;
  }
  ~Hdf5Handle() { reset(); }

  hid_t get() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }

  /// Gives the identifier up to a caller that closes it and looks at the result.
  hid_t release() { return std::exchange(id_, H5I_INVALID_HID); }

  void reset() noexcept {
    if (id_ >= 0) Close(id_);
    id_ = H5I_INVALID_HID;
  }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

using Hdf5File = Hdf5Handle<H5Fclose>;
using Hdf5Dataset = Hdf5Handle<H5Dclose>;
using Hdf5Space = Hdf5Handle<H5Sclose>;
using Hdf5Type = Hdf5Handle<H5Tclose>;
using Hdf5Attribute = Hdf5Handle<H5Aclose>;
using Hdf5Object = Hdf5Handle<H5Oclose>;
using Hdf5Properties = Hdf5Handle<H5Pclose>;

/// Throws std::bad_alloc when the library's last failure on this thread was for want of memory: what it could
/// not do then says nothing of a file.
void require_hdf5_memory();

/// What the library says about its last failure on this thread: the innermost description, as one line.
std::string hdf5_error_text();

/// Properties to open or create files with: no file locking, because network file systems often lack it,
/// unless the variable HDF5_USE_FILE_LOCKING asks for it.
Hdf5Properties hdf5_file_access();

namespace detail {
[[noreturn]] void throw_hdf5_error(std::string_view call, std::string_view subject);
}  // namespace detail

/// `result` when it is no failure. Otherwise throws InputError naming `subject` for a reading function that
/// failed although the system refused nothing: the file is damaged. Throws IoError naming `subject`, the
/// function and the library's reason for any other.
template <typename Result>
Result check_hdf5(Result result, std::string_view call, std::string_view subject) {
  if (result < 0) detail::throw_hdf5_error(call, subject);
  return result;
}

}  // namespace weightcast

/// Calls the HDF5 library and returns what it returns; throws on failure, as check_hdf5 says. `subject` is
/// the file's path.
#define WEIGHTCAST_HDF5(call, subject) ::weightcast::check_hdf5((call), #call, (subject))
