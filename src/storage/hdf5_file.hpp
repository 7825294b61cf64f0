#pragma once

#include <optional>
#include <string>

#include "storage/input_file.hpp"
#include "sys/hdf5.hpp"

namespace weightcast {

/// An HDF5 file that is open for reading, and the same file opened once more by ourselves. Move and destroy
/// it under an Hdf5Lock.
struct OpenHdf5 {
  InputFile input;
  Hdf5File file;
};

/// Opens a file for reading, under an Hdf5Lock. Throws IoError when it cannot be read or is replaced
/// meanwhile, InputError when it is not HDF5 or damaged.
OpenHdf5 open_hdf5(const std::string& path);

/// Properties to open a dataset with, under which the library opens no other file: links to other files fail,
/// and the sources of virtual datasets are looked for in `folder`.
Hdf5Properties dataset_access(const std::string& folder);

/// Where a file that the HDF5 file at `path` names is, if it is a regular file below that file's own folder,
/// links resolved; otherwise nothing.
std::optional<std::string> path_below_folder(const std::string& path, const std::string& name);

}  // namespace weightcast
