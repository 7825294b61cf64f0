#include "storage/hdf5_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "storage/foreign_file.hpp"
#include "storage/hdf5_header.hpp"
#include "storage/local_files.hpp"

namespace weightcast {

namespace {

namespace fs = std::filesystem;

// Called by C code: a negative result ends the library's attempt to follow a link to another file.
herr_t refuse_link(const char* /*parent_file*/, const char* /*parent_group*/, const char* /*file*/,
                   const char* /*object*/, unsigned* /*flags*/, hid_t /*access*/, void* /*data*/) {
  return -1;
}

/// The file that the library has open: the system's own descriptor.
FileIdentity identity_in_library(const Hdf5File& file, const std::string& path) {
  void* handle = nullptr;
  WEIGHTCAST_HDF5(H5Fget_vfd_handle(file.get(), H5P_DEFAULT, &handle), path);
  return identity_of(*static_cast<int*>(handle), path);
}

}  // namespace

OpenHdf5 open_hdf5(const std::string& path) {
  InputFile input(path);
  if (!has_hdf5_signature(path)) {
    const std::string what = describe_no_weights(first_bytes(input, kForeignBytes));
    throw InputError(fmt::format("{} is not an HDF5 file: {}", path, what.empty() ? "copy it again" : what));
  }
  const Hdf5Properties access = hdf5_file_access();
  Hdf5File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()));
  if (!file) {
    require_hdf5_memory();
    throw InputError(
        fmt::format("{} is HDF5 but cannot be opened: {}; it is truncated, damaged or still being "
                    "written: copy it again",
                    path, hdf5_error_text()));
  }
  require_same_file(identity_in_library(file, path), {path, input.identity(), 0});
  return {std::move(input), std::move(file)};
}

Hdf5Properties dataset_access(const std::string& folder) {
  Hdf5Properties access(WEIGHTCAST_HDF5(H5Pcreate(H5P_DATASET_ACCESS), "HDF5"));
  WEIGHTCAST_HDF5(H5Pset_elink_cb(access.get(), refuse_link, nullptr), "HDF5");
  WEIGHTCAST_HDF5(H5Pset_virtual_prefix(access.get(), folder.c_str()), "HDF5");
  return access;
}

std::optional<std::string> path_below_folder(const std::string& path, const std::string& name) {
  std::error_code error;
  const fs::path parent = fs::path(path).parent_path();
  const fs::path folder = fs::canonical(parent.empty() ? "." : parent, error);
  if (error) return std::nullopt;
  const fs::path meant = fs::canonical(folder / name, error);
  if (error || !fs::is_regular_file(meant, error)) return std::nullopt;
  const auto [rest, below] = std::mismatch(folder.begin(), folder.end(), meant.begin(), meant.end());
  if (rest != folder.end() || below == meant.end()) return std::nullopt;
  return meant.string();
}

}  // namespace weightcast
