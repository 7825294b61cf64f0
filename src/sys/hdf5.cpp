#include "sys/hdf5.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <system_error>

#include "core/error.hpp"

namespace weightcast {

namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// The library must not clean up when the process ends: after a write that the system refused it would crash
// there. That has to be said before anything else is asked of it.
[[maybe_unused]] const herr_t no_cleaning_up = H5dont_atexit();

// The walk goes upward, so the first description is the one nearest to the cause.
herr_t keep_first(unsigned /*depth*/, const H5E_error2_t* error, void* text) {
  auto& kept = *static_cast<std::string*>(text);
  if (kept.empty() && error->desc != nullptr) kept = error->desc;
  return 0;
}

// What the system refused comes with times, addresses and numbers of the library's own behind this.
constexpr std::string_view kErrno = "errno = ";

/// Whether the library's last failure on this thread has a cause outside the file: an error of the system, or
/// a filter that is not there.
bool system_refused() {
  bool refused = false;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned /*depth*/, const H5E_error2_t* error, void* data) -> herr_t {
        const std::string_view what = error->desc != nullptr ? error->desc : "";
        if (error->min_num == H5E_NOFILTER || what.find(kErrno) != std::string_view::npos)
          *static_cast<bool*>(data) = true;
        return 0;
      },
      &refused);
  return refused;
}

/// Whether a function of the library only looks at what a file holds: `H5Dread`, `H5Literate`,
/// `H5Oget_info2`, `H5Lunpack_elink_val`.
bool is_reading(std::string_view function) {
  constexpr std::size_t kPrefix = 3;  // `H5D`
  if (function.size() < kPrefix) return false;
  function.remove_prefix(kPrefix);
  return std::ranges::any_of(
      std::array<std::string_view, 6>{"read", "get_", "iterate", "open", "exists", "unpack"},
      [&](std::string_view verb) { return function.starts_with(verb); });
}

}  // namespace

Hdf5Lock::Hdf5Lock() : lock_(library_mutex()) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

std::string hdf5_error_text() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  if (text.empty()) return "no reason given";
  // The system's word is enough.
  if (const std::size_t at = text.find(kErrno); at != std::string::npos) {
    const int error = std::atoi(text.c_str() + at + kErrno.size());
    const std::string what = text.substr(0, text.find_first_of(":,"));
    text = fmt::format("{}: {}", what, std::generic_category().message(error));
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
      text += "; free some space or choose another folder";
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

void require_hdf5_memory() {
  bool missing = false;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned /*depth*/, const H5E_error2_t* error, void* data) -> herr_t {
        const bool memory = error->min_num == H5E_NOSPACE || error->min_num == H5E_CANTALLOC;
        const std::string_view what = error->desc != nullptr ? error->desc : "";
        // The same numbers say that a disk is full, with the system's error beside them.
        if (memory && what.find("memory") != std::string_view::npos) *static_cast<bool*>(data) = true;
        return 0;
      },
      &missing);
  if (missing) throw std::bad_alloc();
}

Hdf5Properties hdf5_file_access() {
  Hdf5Properties access(WEIGHTCAST_HDF5(H5Pcreate(H5P_FILE_ACCESS), "HDF5"));
  // Plain files, whatever the environment says: identities of files are looked at through this driver.
  WEIGHTCAST_HDF5(H5Pset_fapl_sec2(access.get()), "HDF5");
#if H5_VERSION_GE(1, 10, 7)
  WEIGHTCAST_HDF5(H5Pset_file_locking(access.get(), false, true), "HDF5");
#endif
  return access;
}

void detail::throw_hdf5_error(std::string_view call, std::string_view subject) {
  require_hdf5_memory();
  const std::string_view function = call.substr(0, call.find('('));
  if (is_reading(function) && !system_refused()) {
    throw InputError(fmt::format("{}: {}; the file is damaged, copy it again", subject, hdf5_error_text()));
  }
  throw IoError(fmt::format("{}: {} failed: {}", subject, function, hdf5_error_text()));
}

}  // namespace weightcast
