#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace weightcast {

// While a file is being replaced, others lie beside it under hidden names: `.NAME.<id>.partial`, the new one
// as far as it is written, and `.NAME.<id>.old`, the old one until its replacement is certain.

inline constexpr std::string_view kPartial = "partial";
inline constexpr std::string_view kOld = "old";

/// 16 hexadecimal digits that nobody can guess.
std::string fresh_id();

/// A hidden path beside `path`, with an id of its own.
std::string hidden_path(const std::string& path, std::string_view kind);

/// The name that a hidden file belongs to, also of the form without an id that earlier versions gave; that of
/// another file as it is.
std::string_view finished_name(std::string_view name);

/// Removes the hidden files that broken runs left in a folder for those final names of which `mine` is true.
/// An old file whose final name is gone gets that back. Only for who holds the folder's lock. A file that
/// cannot be removed does no harm and stays.
void remove_left_overs(const std::string& directory, const std::function<bool(std::string_view)>& mine);

/// The folder of a path, `.` when it names none.
std::string directory_of(const std::string& path);

}  // namespace weightcast
