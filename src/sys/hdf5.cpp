#include "sys/hdf5.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"

namespace weightcast {

namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// The walk goes upward, so the first description is the one nearest to the cause.
herr_t keep_first(unsigned /*depth*/, const H5E_error2_t* error, void* text) {
  auto& kept = *static_cast<std::string*>(text);
  if (kept.empty() && error->desc != nullptr) kept = error->desc;
  return 0;
}

}  // namespace

Hdf5Lock::Hdf5Lock() : lock_(library_mutex()) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

std::string hdf5_error_text() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  if (text.empty()) return "no reason given";
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

Hdf5Properties hdf5_file_access() {
  Hdf5Properties access(WEIGHTCAST_HDF5(H5Pcreate(H5P_FILE_ACCESS), "HDF5"));
#if H5_VERSION_GE(1, 10, 7)
  WEIGHTCAST_HDF5(H5Pset_file_locking(access.get(), false, true), "HDF5");
#endif
  return access;
}

void detail::throw_hdf5_error(std::string_view call, std::string_view subject, std::source_location where) {
  const std::string_view function = call.substr(0, call.find('('));
  throw IoError(fmt::format("{}: {} failed: {}", subject, function, hdf5_error_text()), where);
}

}  // namespace weightcast
