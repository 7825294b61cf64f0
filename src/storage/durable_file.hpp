#pragma once

#include <string>
#include <string_view>

namespace weightcast {

/// Makes a small file, which must not be there yet, and puts it on the disk. Throws SystemRefusal; there is
/// no file then.
void write_durably(const std::string& path, std::string_view text);

/// Adds the text to a file that is there, through no link, and puts it on the disk. Throws SystemRefusal; a
/// part of the text may be there then.
void append_durably(const std::string& path, std::string_view text);

}  // namespace weightcast
