#pragma once

#include <functional>
#include <string>

namespace weightcast {

/// Reads a file's metadata in a child process first, because the HDF5 library may crash on what a damaged or
/// hostile file says (texts of variable length write beyond their buffers). `read` must open the file itself
/// and take no Hdf5Lock; what it throws is for this process to find again. Under an Hdf5Lock, which the child
/// has from the calling thread. Throws InputError naming `path` when the child does not survive. Where no
/// child can be had nothing is tried.
void require_survivable(const std::string& path, const std::function<void()>& read);

}  // namespace weightcast
