#pragma once

#include <sys/stat.h>

#include <string>

#include "storage/input_file.hpp"

namespace weightcast {

// Renames that replace nothing but what is known. Where the file system cannot promise that, as network file
// systems cannot, they look first, and what comes at that very moment is replaced.

/// Gives a file another name that nobody has. 0, or the system's error: EEXIST when the name is taken.
int take_free_name(const std::string& from, const std::string& to);

/// Gives a file the name of another one, which loses it; the name always leads to one of them. 0, or the
/// system's error: EEXIST when it leads to any other file than the one that is expected. A name that has
/// become free is taken.
int take_name_of(const FileIdentity& expected, const std::string& from, const std::string& to);

/// Errors of file systems and rules under which a file cannot have a second name.
bool means_no_links(int error);

/// Whether the path leads to that very file, by itself and not through a link.
bool is_name_of(const std::string& path, const struct stat& file);

}  // namespace weightcast
