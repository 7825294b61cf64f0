#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace weightcast {

/// Reads a file's metadata in a child process first, because the HDF5 library may crash on what a damaged or
/// hostile file says (texts of variable length write beyond their buffers), run in circles, or take all
/// memory of the host (a text says itself how long it is). `read` must open the file itself and take no
/// Hdf5Lock; what it changes is changed in the child alone, and what it throws is for this process to find
/// again. Under an Hdf5Lock, which the child has from the calling thread. Throws InputError naming `path`
/// when the child does not survive, computes for longer than one that looks at every one of `bytes`, or needs
/// more memory. Where no child can be had nothing is tried.
void require_survivable(const std::string& path, std::int64_t bytes, const std::function<void()>& read);

}  // namespace weightcast
